import type { SchedulePolicy } from "../../common/schedule-policies.ts";
import { buildSchedule, type ScheduledSegment, type SharedCores, simulateStep, turnsOf } from "../../schedule/index.ts";
import type { LinkRate, RateOverrides } from "../request.ts";

/** A step with more forward passes than this is not simulated, because that would take too long: the closed form is used. */
const MOST_SIMULATED = 8192;

/** A segment with the seconds that each of its ranks needs for a micro-batch. */
export interface TimedSegment {
  readonly ranks: readonly number[];
  readonly needsBackward: boolean;
  readonly forward: readonly number[];
  readonly backward: readonly number[];
}

/** The facts that decide how long a step's passes take. */
export interface StepShape {
  readonly segments: readonly TimedSegment[];
  readonly microBatches: number;
  readonly policy: SchedulePolicy;
  /** Bytes of one activation, or of its gradient. */
  readonly messageBytes: number;
  /** Null if both are one rank. */
  readonly linkOf: (from: number, to: number) => LinkRate | null;
  /** Null: every rank computes at full speed. */
  readonly cores: SharedCores | null;
}

export interface PassesTime {
  /** Seconds from the first forward pass to the last backward pass. */
  readonly seconds: number;
  /** Share of that in which the ranks that hold segments do not compute. */
  readonly bubble: number;
}

/** A segment as the schedule takes it: its durations are the mean over its ranks. */
function scheduled({ ranks, forward, backward }: TimedSegment): ScheduledSegment {
  return { ranks, forward: mean(forward), backward: mean(backward) };
}

export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Time of a step's passes: a simulation of the ranks' instruction lists, or the closed form where that would take too long. */
export function passesTime(shape: StepShape): PassesTime {
  const { segments, microBatches, policy } = shape;
  if (segments.length < 2 || segments.length * microBatches > MOST_SIMULATED) return quickPassesTime(shape);
  const lists = buildSchedule({
    segments: segments.map(scheduled),
    microBatches,
    policy,
    needsBackward: (segment) => segments[segment]!.needsBackward,
  });
  const seconds = (of: "forward" | "backward") => (segment: number, microBatch: number) => {
    const own = segments[segment]!;
    return own[of][microBatch % own.ranks.length]!;
  };
  const links = {
    latency: (from: number, to: number) => shape.linkOf(from, to)?.latency ?? 0,
    bytesPerSecond: (from: number, to: number) => shape.linkOf(from, to)?.bytesPerSecond ?? Number.POSITIVE_INFINITY,
    messageBytes: () => shape.messageBytes,
    buffer: Number.POSITIVE_INFINITY,
  };
  const times = { forward: seconds("forward"), backward: seconds("backward") };
  const { stepTime, bubble } = simulateStep(lists, times, links, shape.cores);
  return { seconds: stepTime, bubble };
}

/**
 * The closed form. With m micro-batches, the largest load L of a rank (or of a slower link) and the sum S of all segments' times and transfers,
 * a step takes m L + (S − L). With v segments a rank it takes m L + (S − L) / v, and with one micro-batch at a time m S. The schedule's own
 * stalls are left out.
 */
export function quickPassesTime({
  segments,
  microBatches,
  policy,
  messageBytes,
  linkOf,
  cores,
}: StepShape): PassesTime {
  const loads = new Map<number, number>();
  let through = 0;
  let longest = 0;
  for (const [index, { ranks, forward, backward }] of segments.entries()) {
    for (const [turn, rank] of ranks.entries()) {
      const share = turnsOf({ ranks }, rank, microBatches) / microBatches;
      loads.set(rank, (loads.get(rank) ?? 0) + share * (forward[turn]! + backward[turn]!));
    }
    const next = segments[index + 1];
    const transfer = next === undefined ? 0 : longestTransfer(ranks, next.ranks, messageBytes, linkOf);
    longest = Math.max(longest, transfer);
    through += Math.max(...forward.map((time, turn) => time + backward[turn]!)) + 2 * transfer;
  }
  const compute = [...loads.values()].reduce((sum, load) => sum + load, 0);
  const largest = Math.max(...loads.values(), ...crowdedLoads(loads, cores), longest);
  const held = segments.filter(({ ranks }) => ranks.length === 1).length;
  const chunks = policy === "interleaved" ? Math.max(1, held / loads.size) : 1;
  // A last, smaller group of interleaved micro-batches takes as long as a full one.
  const counted = chunks > 1 ? Math.ceil(microBatches / loads.size) * loads.size : microBatches;
  const seconds =
    policy === "sequential" ? microBatches * through : counted * largest + Math.max(0, through - largest) / chunks;
  return { seconds, bubble: seconds === 0 ? 0 : Math.max(0, 1 - (microBatches * compute) / (loads.size * seconds)) };
}

/** Ranks that share cores have their loads added up and divided by how many ranks the cores run at full speed. */
function crowdedLoads(loads: ReadonlyMap<number, number>, cores: SharedCores | null): number[] {
  if (cores === null) return [];
  const groups = new Map<string, number>();
  for (const [rank, load] of loads) groups.set(cores.groupOf(rank), (groups.get(cores.groupOf(rank)) ?? 0) + load);
  return [...groups].map(([group, load]) => load / cores.fullSpeed(group));
}

/** Seconds of a message from a segment to the next, over the slowest link. */
export function longestTransfer(
  from: readonly number[],
  to: readonly number[],
  bytes: number,
  linkOf: StepShape["linkOf"],
): number {
  const seconds = (link: LinkRate | null) => (link === null ? 0 : link.latency + bytes / link.bytesPerSecond);
  return Math.max(...from.flatMap((a) => to.map((b) => seconds(linkOf(a, b)))));
}

/** The cores that ranks on crowded nodes share. These ranks have `share` of each node's. Null: every rank has its own. */
export function sharedCores(
  nodes: readonly string[],
  { crowded }: Pick<RateOverrides, "crowded">,
  share: (node: string) => number = () => 1,
): SharedCores | null {
  if (crowded.size === 0) return null;
  return {
    groupOf: (rank) => nodes[rank]!,
    fullSpeed: (node) => (crowded.get(node) ?? Number.POSITIVE_INFINITY) * share(node),
  };
}
