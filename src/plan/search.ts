import type { SchedulePolicy } from "../common/schedule-policies.ts";
import { trainedMatrices } from "./memory/kind-memory.ts";
import { type PlacementProblem, place, waysToPlace } from "./placement/planner.ts";
import type { Way, WayKinds } from "./placement/ways.ts";
import { layerDevicesOf, sortedIds, unitDevicesOf } from "./placement-problem.ts";
import type { Finish, Plan } from "./plan.ts";
import { type NamedStrategy, type PlanRequest, policyOf } from "./request.ts";
import { fullCheckpointing } from "./segment-checkpointing.ts";
import { segmentsOf } from "./segments.ts";
import { quickPassesTime } from "./time/step-time.ts";
import { predictTime } from "./time.ts";

/** So many of the ways that are quickest by the closed form, and fit, are planned whole, and their steps simulated. */
const MOST_JUDGED = 4;
/** By what share a step must be shorter for several segments a device, or a head on several devices; and for other devices. */
const WORTH_SPREADING = 0.01;
const WORTH_MORE_DEVICES = 0.001;

/**
 * The plan whose step is predicted shortest among the ways that the request's strategy and schedule leave open; null where nothing fits.
 * Which devices take part, where the model is cut, how many segments a device has and how many share the head are chosen together: each way is
 * cut for itself, and the simulated step decides.
 */
export function bestWay(request: PlanRequest, problem: PlacementProblem, finish: Finish): Plan | null {
  const strategy = request.strategy as NamedStrategy;
  if (strategy === "balanced_low_0" || strategy === "sequential") {
    const stages = place(problem, strategy);
    if (stages === null) return null;
    const policy = policyOf(request.work);
    if (policy !== "interleaved") return finish(scheduled(request, policy), unitDevicesOf(stages));
    const plan = finish(scheduled(request, "1f1b"), unitDevicesOf(stages));
    return warned(plan, `${strategy} keeps each device's layers together`);
  }
  const kinds = kindsOf(request, strategy);
  const best = judge(request, waysToPlace(problem, strategy, kinds), finish);
  if (best !== null || kinds.plain !== null) return best;
  const plain = judge(request, waysToPlace(problem, strategy, { plain: "1f1b", dealt: false, shared: false }), finish);
  return plain === null ? null : warned(plain, "no placement with several segments a device fits");
}

/** Whether a run trains anything of the head: then it is one device's, or its gradients would have to be added up. */
export function headIsTrained(request: PlanRequest): boolean {
  const head = request.spec.layers.findIndex(({ kind }) => kind === "head");
  return head >= 0 && trainedMatrices(request).some(({ layer }) => layer === head);
}

/** A device map of the user's, and transformers' own strategies, keep each layer on one device; all but auto and fastest deal segments out only when asked to. */
function kindsOf(request: PlanRequest, strategy: Exclude<NamedStrategy, "balanced_low_0" | "sequential">): WayKinds {
  const { work, spec } = request;
  const { schedule } = work;
  const free = strategy !== "balanced" && work.microBatches > 1 && work.forwardOnly !== true;
  const inTurn = schedule === "auto" || schedule === "1f1b" || schedule === "interleaved";
  return {
    plain: schedule === "interleaved" ? null : policyOf(work),
    dealt: schedule === "interleaved" || (schedule === "auto" && free),
    shared: free && inTurn && spec.layers.at(-1)!.kind === "head" && !headIsTrained(request),
  };
}

function judge(request: PlanRequest, ways: readonly Way[], finish: Finish): Plan | null {
  // One request a schedule: what is reckoned of a request is remembered.
  const requests = new Map<SchedulePolicy, PlanRequest>();
  for (const { policy } of ways) if (!requests.has(policy)) requests.set(policy, scheduled(request, policy));
  const ranked = ways.map((way, order) => ({ way, order, seconds: quickSeconds(requests.get(way.policy)!, way) }));
  const judged: { plan: Plan; order: number; way: Way }[] = [];
  let overfull: Plan | null = null;
  for (const { way, order } of ranked.sort((a, b) => a.seconds - b.seconds || a.order - b.order)) {
    if (judged.length === MOST_JUDGED) break;
    const plan = finish(requests.get(way.policy)!, way.unitDevices);
    if (plan.devices.every(({ memory }) => memory.total <= memory.budget)) judged.push({ plan, order, way });
    else if (!isSpread(way)) overfull ??= plan;
  }
  let best: { plan: Plan; way: Way } | null = null;
  for (const one of judged.sort((a, b) => a.order - b.order)) {
    const least = best === null || isSpread(one.way) === isSpread(best.way) ? WORTH_MORE_DEVICES : WORTH_SPREADING;
    if (best === null || stepOf(one.plan) < (1 - least) * stepOf(best.plan)) best = one;
  }
  return best?.plan ?? overfull;
}

function stepOf({ predicted }: Plan): number {
  return predicted!.stepTimeMs;
}

function isSpread({ unitDevices, policy }: Way): boolean {
  return policy === "interleaved" || unitDevices.at(-1)!.length > 1;
}

/** By the closed form, with the checkpointing that placement counts with. */
function quickSeconds(request: PlanRequest, { unitDevices }: Way): number {
  const segments = segmentsOf(layerDevicesOf(request, unitDevices), sortedIds(request));
  return predictTime(request, segments, fullCheckpointing(request, segments), quickPassesTime).step;
}

function scheduled(request: PlanRequest, schedule: SchedulePolicy): PlanRequest {
  return { ...request, work: { ...request.work, schedule } };
}

function warned(plan: Plan, why: string): Plan {
  if (plan.segments.length < 2) return plan;
  return { ...plan, warnings: [...plan.warnings, `${why}: the interleaved schedule runs as 1f1b`] };
}
