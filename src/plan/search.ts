import type { SchedulePolicy } from "../common/schedule-policies.ts";
import { trainedMatrices } from "./memory/kind-memory.ts";
import { type PlacementProblem, place, type WaysOverGroup, waysToPlace } from "./placement/planner.ts";
import type { Way, WayKinds } from "./placement/ways.ts";
import { layerDevicesOf, sortedIds, unitDevicesOf } from "./placement-problem.ts";
import type { Finish, Plan } from "./plan.ts";
import { type NamedStrategy, type PlanRequest, policyOf } from "./request.ts";
import { fullCheckpointing } from "./segment-checkpointing.ts";
import { segmentsOf } from "./segments.ts";
import { quickPassesTime } from "./time/step-time.ts";
import { predictTime } from "./time.ts";

/**
 * This many of the ways that fit, the fastest by the closed form, are planned in full and their steps simulated. So is the fastest way of each
 * kind, over all devices and over fewer. The closed form knows neither a schedule's stalls nor the memory of a head's copies and of more
 * micro-batches in flight.
 */
const MOST_JUDGED = 4;
/** No way is planned in full that takes longer than this many times the fastest, by the closed form. */
const WORTH_A_LOOK = 1.1;
/**
 * A way with more segments a device, which exchange more messages, must make the step shorter by this share; a way with more devices by
 * the next.
 */
const WORTH_SPREADING = 0.01;
const WORTH_MORE_DEVICES = 0.001;

/**
 * The plan with the shortest predicted step, among the ways that the request's strategy and schedule allow; null if nothing fits.
 * A way is a choice of devices, of segments a device, and of how many devices share the head. Each way gets its own cuts, and the simulated
 * step decides.
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
  if (best !== null || kinds.plain !== null) {
    const whole = best === null || kinds.shared || !mayShare(request, strategy);
    return whole
      ? best
      : noted(best, "the head is trained: it stays on one device, whose stage takes the longer for it");
  }
  const plain = judge(request, waysToPlace(problem, strategy, { plain: "1f1b", dealt: false, shared: false }), finish);
  return plain === null ? null : warned(plain, "no placement with several segments a device fits");
}

/** Whether a run trains anything of the head. If so the head has one device: on several, its gradients would have to be added up. */
export function headIsTrained(request: PlanRequest): boolean {
  const head = request.spec.layers.findIndex(({ kind }) => kind === "head");
  return head >= 0 && trainedMatrices(request).some(({ layer, twin }) => layer === head || twin?.layer === head);
}

/**
 * The kinds of ways to try. Only auto and fastest share the head; they alone deal segments out without being asked for the interleaved
 * schedule.
 */
function kindsOf(request: PlanRequest, strategy: Exclude<NamedStrategy, "balanced_low_0" | "sequential">): WayKinds {
  const { work } = request;
  const { schedule } = work;
  return {
    plain: schedule === "interleaved" ? null : policyOf(work),
    dealt: schedule === "interleaved" || (schedule === "auto" && isFree(request, strategy)),
    shared: mayShare(request, strategy) && !headIsTrained(request),
  };
}

/** Whether the strategy leaves open how layers are spread, and there is more than one micro-batch. */
function isFree({ work }: PlanRequest, strategy: NamedStrategy): boolean {
  return strategy !== "balanced" && work.microBatches > 1 && work.forwardOnly !== true;
}

/** Whether several devices may have the head, trained or not. */
function mayShare(request: PlanRequest, strategy: NamedStrategy): boolean {
  const { schedule } = request.work;
  const inTurn = schedule === "auto" || schedule === "1f1b" || schedule === "interleaved";
  return inTurn && isFree(request, strategy) && request.spec.layers.at(-1)!.kind === "head";
}

interface Ranked {
  readonly way: Way;
  readonly devices: number;
  /** Seconds of a step, by the closed form. */
  readonly seconds: number;
}

interface Judged {
  readonly plan: Plan;
  readonly devices: number;
  readonly kind: string;
}

function judge(request: PlanRequest, groups: Iterable<WaysOverGroup>, finish: Finish): Plan | null {
  // One request object for each schedule: costs are cached by request.
  const requests = new Map<SchedulePolicy, PlanRequest>();
  const requestOf = ({ policy }: Way) => {
    const known = requests.get(policy) ?? scheduled(request, policy);
    requests.set(policy, known);
    return known;
  };
  const ranked = rank(groups, (way) => quickSeconds(requestOf(way), way));
  const all = Math.max(0, ...ranked.map(({ devices }) => devices));
  const judged: Judged[] = [];
  let overfull: Plan | null = null;
  for (const { way, devices, seconds } of ranked) {
    const enough = judged.length >= MOST_JUDGED || (judged.length > 0 && seconds > WORTH_A_LOOK * ranked[0]!.seconds);
    const kind = `${kindOf(way)}${devices < all ? " over fewer" : ""}`;
    if (enough && judged.some((one) => one.kind === kind)) continue;
    const plan = finish(requestOf(way), way.unitDevices);
    if (plan.devices.every(({ memory }) => memory.total <= memory.budget)) judged.push({ plan, devices, kind });
    else if (kindOf(way) === "whole") overfull ??= plan;
  }
  return shortest(judged) ?? overfull;
}

/** The ways, fastest first, without groups that can't beat the fastest. */
function rank(groups: Iterable<WaysOverGroup>, secondsOf: (way: Way) => number): Ranked[] {
  const ranked: Ranked[] = [];
  let quickest = Number.POSITIVE_INFINITY;
  for (const { devices, least, ways } of groups) {
    if (least > quickest) continue;
    for (const way of ways()) {
      const seconds = secondsOf(way);
      ranked.push({ way, devices, seconds });
      quickest = Math.min(quickest, seconds);
    }
  }
  return ranked.sort((a, b) => a.seconds - b.seconds);
}

function shortest(judged: Judged[]): Plan | null {
  let best: Judged | null = null;
  for (const one of judged.sort((a, b) => a.devices - b.devices || piecesOf(a.plan) - piecesOf(b.plan))) {
    const pieces = best === null ? 0 : piecesOf(one.plan) / one.devices - piecesOf(best.plan) / best.devices;
    const least = pieces > 0 ? WORTH_SPREADING : WORTH_MORE_DEVICES;
    if (best === null || stepOf(one.plan) < (1 - least) * stepOf(best.plan)) best = one;
  }
  return best?.plan ?? null;
}

function piecesOf({ devices }: Plan): number {
  return devices.reduce((sum, { segments }) => sum + segments.length, 0);
}

function stepOf({ predicted }: Plan): number {
  return predicted!.stepTimeMs;
}

function kindOf({ unitDevices, policy }: Way): string {
  const shared = unitDevices.at(-1)!.length > 1;
  return policy === "interleaved" ? (shared ? "dealt, shared" : "dealt") : shared ? "shared" : "whole";
}

/** Seconds of a step by the closed form, with the checkpointing that placement assumes. */
function quickSeconds(request: PlanRequest, { unitDevices }: Way): number {
  const segments = segmentsOf(layerDevicesOf(request, unitDevices), sortedIds(request));
  return predictTime(request, segments, fullCheckpointing(request, segments), quickPassesTime).step;
}

function scheduled(request: PlanRequest, schedule: SchedulePolicy): PlanRequest {
  return { ...request, work: { ...request.work, schedule } };
}

function warned(plan: Plan, why: string): Plan {
  return noted(plan, `${why}: the interleaved schedule runs as 1f1b`);
}

function noted(plan: Plan, note: string): Plan {
  return plan.segments.length < 2 ? plan : { ...plan, warnings: [...plan.warnings, note] };
}
