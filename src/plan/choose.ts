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

/** One way to run a step: over so many replicas of the pipeline, each doing this work. */
export interface WorkChoice {
  readonly replicas: number;
  /** Exact, or, where `sampled`, from a sample of the run's steps. */
  work(sampled: boolean): Work | Promise<Work>;
}

/**
 * The plan with the most predicted tokens a second among ways to run a step, and its way. All are compared on a sample of the
 * steps; the best that fits all of them is taken, an arena's room beyond the prediction included. Where none does: of a user's own map
 * and accelerate's, which may go beyond budgets, the fastest that the devices hold; else the one that lacks least.
 * Errors: as makePlan's; where nothing fits, the reason of the last way tried.
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
    // A plan takes a while; between two others have their turn.
    await turn();
    // Fewer devices a pipeline are a choice of more replicas: there is no need to look for that within each.
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
  // The planner's own all keep to the budgets, but for that room: then the least counts.
  const planned = request.planner === "pipelora" && typeof strategy === "string";
  const runnable = overfull.filter(({ plan }) => plan.problem === null);
  const [first, ...more] = runnable.length > 0 ? runnable : overfull;
  if (first === undefined) throw last.explain();
  const least = (a: Plan, b: Plan) => lacks(a, request.devices) < lacks(b, request.devices);
  const better = runnable.length > 0 && !planned ? (a: Plan, b: Plan) => speedOf(a) > speedOf(b) : least;
  return more.reduce((best, other) => (better(other.plan, best.plan) ? other : best), first);
}

/** Ways that fit, from the fastest on. Those that could not beat one already planned, however well they were placed, are left out. */
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

/** Bytes by which the fullest device is beyond its budget, with the room that arenas have beyond the prediction. */
function lacks({ devices }: Plan, all: readonly Device[]): number {
  const kinds = new Map(all.map(({ id, kind }) => [id, kind]));
  const over = devices.map(({ device, memory }) => takenBytes(memory, kinds.get(device)!) - memory.budget);
  return Math.max(0, ...over);
}

/**
 * What p devices as fast as the fastest could do at most, without links, of m micro-batches that take S on one device. Stage i with
 * load L_i works m L_i, and before and after that waits for the stages before it: a step takes at least m L_i + L_0 + … + L_(i-1). The
 * loads that make the largest of these least shrink by (m - 1) / m a stage, and give S / (1 - ((m - 1) / m)^p). Of v segments a device a stage
 * waits for the first of each before it, S / (p v) each.
 */
function mostTokensPerSecond(request: Omit<PlanRequest, "work">, replicas: number, work: Work): number {
  const timesOn = layerTimer({ ...request, work });
  // What a plan may save: recomputed passes but where all blocks must take them, and expansions that a cache makes needless.
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
