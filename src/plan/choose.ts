import { PipeloraError } from "../common/errors.ts";
import type { Plan } from "./plan.ts";
import { makeReplicatedPlan } from "./replicas.ts";
import type { PlanRequest, Work } from "./request.ts";

/** One way to run a step: over so many replicas of the pipeline, each doing this work. */
export interface WorkChoice {
  readonly replicas: number;
  /** Exact, or, where `sampled`, from a sample of the run's steps. */
  work(sampled: boolean): Work;
}

/**
 * The plan with the most predicted tokens a second among ways to run a step, and its way. All are compared on a sample of the
 * steps; the best that fits all of them is taken. Errors: the last one's if none fits; others as makePlan's.
 */
export function fastestPlan<Choice extends WorkChoice>(
  request: Omit<PlanRequest, "work">,
  choices: readonly Choice[],
): { plan: Plan; choice: Choice } {
  let failure: unknown = new PipeloraError("PL_INTERNAL", "no way to run the step was given");
  const attempt = (choice: Choice, sampled: boolean): Plan | null => {
    try {
      return makeReplicatedPlan({ ...request, work: choice.work(sampled) }, choice.replicas);
    } catch (error) {
      if (!(error instanceof PipeloraError) || error.code !== "PL_PLACEMENT_INFEASIBLE") throw error;
      failure = error;
      return null;
    }
  };
  for (const choice of choices.length > 1 ? bySpeed(choices, attempt) : choices) {
    const plan = attempt(choice, false);
    if (plan !== null) return { plan, choice };
  }
  throw failure;
}

function bySpeed<Choice extends WorkChoice>(
  choices: readonly Choice[],
  attempt: (choice: Choice, sampled: boolean) => Plan | null,
): Choice[] {
  const plans = choices.flatMap((choice) => {
    const plan = attempt(choice, true);
    return plan === null ? [] : [{ choice, speed: plan.predicted?.tokensPerSecond ?? 0 }];
  });
  return plans.sort((a, b) => b.speed - a.speed).map(({ choice }) => choice);
}
