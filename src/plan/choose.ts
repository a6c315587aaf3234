import { PipeloraError } from "../common/errors.ts";
import { layerTimer } from "./layer-time.ts";
import { offloadsActivations } from "./offload.ts";
import { Infeasible, type Plan } from "./plan.ts";
import { layerTime } from "./range-costs.ts";
import { attemptReplicatedPlan } from "./replicas.ts";
import type { PlanRequest, Work } from "./request.ts";

/** One way to run a step: over so many replicas of the pipeline, each doing this work. */
export interface WorkChoice {
  readonly replicas: number;
  /** Exact, or, where `sampled`, from a sample of the run's steps. */
  work(sampled: boolean): Work;
}

/**
 * The plan with the most predicted tokens a second among ways to run a step, and its way. All are compared on a sample of the
 * steps; the best that fits all of them is taken. Errors: as makePlan's; where nothing fits, the reason of the last way tried.
 */
export function fastestPlan<Choice extends WorkChoice>(
  request: Omit<PlanRequest, "work">,
  choices: readonly Choice[],
): { plan: Plan; choice: Choice } {
  const { strategy } = request;
  let last = new Infeasible(() => new PipeloraError("PL_INTERNAL", "no way to run the step was given"));
  const attempt = (choice: Choice, sampled: boolean): Plan | null => {
    const { replicas } = choice;
    // Fewer devices a pipeline are a choice of more replicas: there is no need to look for that within each.
    const inner = strategy === "fastest" && choices.length > 1 && replicas > 1 ? "balanced" : strategy;
    const plan = attemptReplicatedPlan({ ...request, strategy: inner, work: choice.work(sampled) }, replicas);
    if (!(plan instanceof Infeasible)) return typeof strategy === "string" ? { ...plan, strategy } : plan;
    last = plan;
    return null;
  };
  const ranked = choices.length > 1 ? bySpeed(request, choices, attempt) : [];
  const others = choices.filter((choice) => !ranked.includes(choice));
  for (const choice of [...ranked, ...others]) {
    const plan = attempt(choice, false);
    if (plan !== null) return { plan, choice };
  }
  throw last.explain();
}

/** Ways from the fastest on. Those that could not beat one already planned, however well they were placed, are left out. */
function bySpeed<Choice extends WorkChoice>(
  request: Omit<PlanRequest, "work">,
  choices: readonly Choice[],
  attempt: (choice: Choice, sampled: boolean) => Plan | null,
): Choice[] {
  const bounded = choices.map((choice) => ({ choice, most: mostTokensPerSecond(request, choice) }));
  const plans: { choice: Choice; speed: number }[] = [];
  let best = 0;
  for (const { choice, most } of bounded.sort((a, b) => b.most - a.most)) {
    if (most < best) break;
    const plan = attempt(choice, true);
    if (plan === null) continue;
    const speed = plan.predicted?.tokensPerSecond ?? 0;
    plans.push({ choice, speed });
    best = Math.max(best, speed);
  }
  return plans.sort((a, b) => b.speed - a.speed).map(({ choice }) => choice);
}

/** What p devices as fast as the fastest could do with loads evenly spread and no links: m S / p, and but for interleaving the fill S − S / p. */
function mostTokensPerSecond(request: Omit<PlanRequest, "work">, choice: WorkChoice): number {
  const work = choice.work(true);
  const timesOn = layerTimer({ ...request, work });
  // What a plan may save: recomputed passes but where all blocks must take them, and expansions that a cache makes needless.
  const recomputes = work.checkpointing === "all" && !offloadsActivations({ ...request, work });
  const cached = request.weightCache !== "off";
  const totals = request.devices.map((device) =>
    timesOn(device).reduce((sum, layer) => sum + layerTime(layer, recomputes, cached), 0),
  );
  const total = Math.min(...totals);
  const depth = Math.max(1, Math.floor(request.devices.length / choice.replicas));
  const fill = work.schedule === "interleaved" ? 0 : total - total / depth;
  return (choice.replicas * work.microBatches * work.meanTokens) / ((work.microBatches * total) / depth + fill);
}
