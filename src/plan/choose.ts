import { setImmediate as turn } from "node:timers/promises";
import { PipeloraError } from "../common/errors.ts";
import { takenBytes } from "./arena.ts";
import type { Device } from "./devices.ts";
import { offloadsActivations } from "./offload.ts";
import { layerTime } from "./placement/range-costs.ts";
import { MOST_CHUNKS } from "./placement/ways.ts";
import { Infeasible, type Plan } from "./plan.ts";
import { attemptReplicatedPlan } from "./replicas.ts";
import type { PlanRequest, Work } from "./request.ts";
import { layerTimer } from "./time/layer-time.ts";

/** One way to run a step: a number of replicas, and the work of each. */
export interface WorkChoice {
  readonly replicas: number;
  /** The work of one replica. `sampled`: counted over a sample of the run's steps, not over all. */
  work(sampled: boolean): Work | Promise<Work>;
}

/**
 * Chooses among ways to run a step: returns the plan with the most predicted tokens a second, and its choice. The choices are ranked on a
 * sample of the steps. The first whose plan fits every step is taken; an arena's margin counts as needed.
 * If none fits, a user's own map or accelerate's may exceed budgets: the fastest that the devices can hold is taken. Otherwise the plan that
 * exceeds its budgets least is taken.
 * Errors: those of makePlan. Where no choice gives a plan, the error is that of the last one tried.
 */
export async function fastestPlan<Choice extends WorkChoice>(
  request: Omit<PlanRequest, "work">,
  choices: readonly Choice[],
): Promise<{ plan: Plan; choice: Choice }> {
  const { strategy } = request;
  let last = new Infeasible(() => new PipeloraError("PL_INTERNAL", "no way to run the step was given"));
  const attempt = async (choice: Choice, sampled: boolean): Promise<Plan | null> => {
    const { replicas } = choice;
    const work = await choice.work(sampled);
    // Making a plan takes a while: let the event loop run in between.
    await turn();
    // More replicas already mean fewer devices in each pipeline: "fastest" need not look for that again.
    const inner = strategy === "fastest" && choices.length > 1 && replicas > 1 ? "auto" : strategy;
    const plan = attemptReplicatedPlan({ ...request, strategy: inner, work }, replicas);
    if (!(plan instanceof Infeasible)) return typeof strategy === "string" ? { ...plan, strategy } : plan;
    last = plan;
    return null;
  };
  const ranked = choices.length > 1 ? await bySpeed(request, choices, attempt) : [];
  const others = choices.filter((choice) => !ranked.includes(choice));
  const overfull: { plan: Plan; choice: Choice }[] = [];
  for (const choice of [...ranked, ...others]) {
    const plan = await attempt(choice, false);
    if (plan !== null && lacks(plan, request.devices) === 0) return { plan, choice };
    if (plan !== null) overfull.push({ plan, choice });
  }
  // Our planner's plans exceed budgets by the arena's margin at most: the smallest excess is best.
  const planned = request.planner === "pipelora" && typeof strategy === "string";
  const runnable = overfull.filter(({ plan }) => plan.problem === null);
  const [first, ...more] = runnable.length > 0 ? runnable : overfull;
  if (first === undefined) throw last.explain();
  const least = (a: Plan, b: Plan) => lacks(a, request.devices) < lacks(b, request.devices);
  const better = runnable.length > 0 && !planned ? (a: Plan, b: Plan) => speedOf(a) > speedOf(b) : least;
  return more.reduce((best, other) => (better(other.plan, best.plan) ? other : best), first);
}

/** Choices that fit, the fastest first. A choice is skipped if no placement of it could be faster than one already planned. */
async function bySpeed<Choice extends WorkChoice>(
  request: Omit<PlanRequest, "work">,
  choices: readonly Choice[],
  attempt: (choice: Choice, sampled: boolean) => Promise<Plan | null>,
): Promise<Choice[]> {
  const bounded: { choice: Choice; most: number }[] = [];
  for (const choice of choices) {
    bounded.push({ choice, most: mostTokensPerSecond(request, choice.replicas, await choice.work(true)) });
    await turn();
  }
  const plans: { choice: Choice; speed: number }[] = [];
  let best = 0;
  for (const { choice, most } of bounded.sort((a, b) => b.most - a.most)) {
    if (most < best) break;
    const plan = await attempt(choice, true);
    if (plan === null || lacks(plan, request.devices) > 0) continue;
    plans.push({ choice, speed: speedOf(plan) });
    best = Math.max(best, speedOf(plan));
  }
  return plans.sort((a, b) => b.speed - a.speed).map(({ choice }) => choice);
}

function speedOf({ predicted }: Plan): number {
  return predicted?.tokensPerSecond ?? 0;
}

/** Bytes by which the fullest device exceeds its budget, arenas with their margin. */
function lacks({ devices }: Plan, all: readonly Device[]): number {
  const kinds = new Map(all.map(({ id, kind }) => [id, kind]));
  const over = devices.map(({ device, memory }) => takenBytes(memory, kinds.get(device)!) - memory.budget);
  return Math.max(0, ...over);
}

/**
 * An upper bound on tokens a second: p devices, all as fast as the fastest, without links. Let m micro-batches each take S seconds on one
 * device. Stage i with load L_i computes for m L_i seconds and waits for the stages before it, so a step takes at least
 * m L_i + L_0 + … + L_(i-1). The largest of these is least when loads shrink by (m - 1) / m from stage to stage; the step then takes
 * S / (1 - ((m - 1) / m)^p). With v segments a device, a stage waits S / (p v) for each stage before it.
 */
function mostTokensPerSecond(request: Omit<PlanRequest, "work">, replicas: number, work: Work): number {
  const timesOn = layerTimer({ ...request, work });
  // The best case: nothing is recomputed unless it must be, and cached weights need no expansion.
  const recomputes = work.checkpointing === "all" && !offloadsActivations({ ...request, work });
  const cached = request.weightCache !== "off";
  const totals = request.devices.map((device) =>
    timesOn(device).reduce((sum, layer) => sum + layerTime(layer, recomputes, cached), 0),
  );
  const total = Math.min(...totals);
  const depth = Math.max(1, Math.floor(request.devices.length / replicas));
  const { microBatches, schedule, meanTokens } = work;
  const shrink = 1 - 1 / microBatches;
  const mayDeal = schedule === "interleaved" || (schedule === "auto" && isFree(request.strategy));
  const dealt = (total * (microBatches + (depth - 1) / MOST_CHUNKS)) / depth;
  const step = Math.min(total / (1 - shrink ** depth), mayDeal ? dealt : Number.POSITIVE_INFINITY);
  return (replicas * microBatches * meanTokens) / step;
}

/** Whether a strategy leaves open how many segments a device has. */
function isFree(strategy: PlanRequest["strategy"]): boolean {
  return strategy === "auto" || strategy === "fastest";
}
