import type { SchedulePolicy } from "../../common/schedule-policies.ts";
import { balancedPartition, type PartitionProblem, partitionNear, type Stage, type StageDevice } from "./partition.ts";
import type { PlacementProblem } from "./planner.ts";
import type { RangeCosts } from "./range-costs.ts";

/** A placement with the schedule that suits it. */
export interface Way {
  /** Devices of each unit, in pipeline order: those that take its micro-batches in turn. */
  readonly unitDevices: readonly (readonly number[])[];
  readonly policy: SchedulePolicy;
}

/** Which kinds of placement may be tried. */
export interface WayKinds {
  /** The schedule of one segment a device; null: there must be several. */
  readonly plain: SchedulePolicy | null;
  /** Several segments a device, dealt out round robin (Megatron-LM). */
  readonly dealt: boolean;
  /** The last unit, with the head, on several devices. */
  readonly shared: boolean;
}

/** Segments a device: all up to so many are tried, and of more those that blocks divide by. */
const EVERY_CHUNKS = 3;
export const MOST_CHUNKS = 8;

/**
 * Ways over these devices, in this order: without the head's sharing and with it, one segment a device and several. Loads are as even as can be;
 * whether a device's whole memory holds is for the caller to see where segments are dealt out.
 */
export function waysOver<Device extends StageDevice>(
  problem: PlacementProblem,
  devices: readonly Device[],
  kinds: WayKinds,
  balanced: (devices: readonly Device[]) => Stage[] | null,
): Way[] {
  const ways: Way[] = [];
  const add = (policy: SchedulePolicy, stages: readonly Stage[] | null, sharers: readonly number[] = []) => {
    if (stages === null) return;
    const own = stages.flatMap(({ device, first, end }) => Array<readonly number[]>(end - first).fill([device.id]));
    ways.push({ policy, unitDevices: sharers.length === 0 ? own : [...own, sharers] });
  };
  const chunks = kinds.dealt ? chunksWorthTrying(problem.units, devices.length) : [];
  if (kinds.plain !== null) add(kinds.plain, balanced(devices));
  if (devices.length === 1) return ways;
  for (const count of chunks) add("interleaved", dealt(problem, devices, count, []));
  if (!kinds.shared) return ways;
  const alone = ways.length;
  for (const sharers of sharersWorthTrying(devices, problem.microBatches)) {
    if (kinds.plain !== null) {
      const found = sharing(problem, devices, sharers.length);
      if (found !== null) add(kinds.plain, found.stages, found.sharers);
    }
    for (const count of chunks) add("interleaved", dealt(problem, devices, count, sharers), sharers);
    if (ways.length > alone) break;
  }
  return ways;
}

function chunksWorthTrying(units: number, devices: number): number[] {
  // But for the embedding and the head.
  const blocks = units - 2;
  const counts = Array.from({ length: MOST_CHUNKS - 1 }, (_, index) => index + 2);
  return counts.filter((count) => count <= EVERY_CHUNKS || blocks % (count * devices) === 0);
}

/** All devices; where they have no room half of them, two: the last ones, which hold the fewest activations. No more than there are micro-batches. */
function sharersWorthTrying(devices: readonly StageDevice[], microBatches: number): number[][] {
  const all = Math.min(devices.length, microBatches);
  const counts = [all, all >> 1, 2].filter((count) => count >= 2);
  return [...new Set(counts)].map((count) => devices.slice(-count).map(({ id }) => id));
}

/** One segment a device, the last unit on the last `count` of them. Devices that would hold nothing else are left out. */
function sharing(
  problem: PlacementProblem,
  devices: readonly StageDevice[],
  count: number,
): { stages: Stage[]; sharers: number[] } | null {
  let used = devices;
  for (;;) {
    const sharers = used.slice(-count).map(({ id }) => id);
    if (sharers.length < 2) return null;
    const burden = shareOf(problem, sharers);
    const stages = balancedPartition(cutBefore(problem, withBurden(used, burden), sharers.length));
    if (stages === null) return null;
    if (stages.length === used.length) return { stages, sharers };
    const kept = new Set(stages.map(({ device }) => device.id));
    used = used.filter(({ id }) => kept.has(id));
  }
}

/** `chunks` segments a device, dealt out round robin; null where there are too few units, or too little room. */
function dealt(
  problem: PlacementProblem,
  devices: readonly StageDevice[],
  chunks: number,
  sharers: readonly number[],
): Stage[] | null {
  // All rounds have a part in the memory. What sharing takes of the time is no round's.
  const burden = { ...shareOf(problem, sharers), seconds: 0 };
  const round = withBurden(devices, { ...burden, bytes: burden.bytes / chunks });
  const all = Array.from({ length: chunks }, () =>
    round.map((device) => ({ ...device, capacity: device.capacity / chunks })),
  );
  const partition = { ...cutBefore(problem, all.flat(), sharers.length), inFlight: () => 1 };
  if (partition.devices.length > partition.to) return null;
  const targets = roundTargets(devices, partition.to, chunks);
  return partitionNear(
    partition,
    partition.devices.map((_, index) => targets[Math.floor(index / devices.length)]!),
  );
}

/**
 * The load of a segment in each round. All rounds together take a device's share of the work. A round's own is a whole number of units, so that
 * every device can meet it; what is left over falls to the last.
 */
function roundTargets(devices: readonly StageDevice[], units: number, chunks: number): number[] {
  const share = 1 / devices.reduce((sum, { costs }) => sum + 1 / Math.max(Number.MIN_VALUE, costs.load(0, units)), 0);
  const { costs } = devices[0]!;
  const unit = costs.load(units >> 1, (units >> 1) + 1);
  if (unit <= 0) return Array<number>(chunks).fill(share / chunks);
  const upTo = (round: number) => (round === chunks ? share : unit * Math.round((share * round) / (unit * chunks)));
  return Array.from({ length: chunks }, (_, round) => upTo(round + 1) - upTo(round));
}

/** Of all units over these devices, but the last where several share it. */
function cutBefore(
  { units, inFlight }: PlacementProblem,
  devices: readonly StageDevice[],
  sharers: number,
): PartitionProblem {
  const to = sharers > 0 ? units - 1 : units;
  return { devices, required: null, from: 0, to, inFlight: (after) => inFlight(after, Math.max(1, sharers)) };
}

/** What each device that shares the last unit takes on beside its own. */
interface Burden {
  readonly on: ReadonlySet<number>;
  readonly units: number;
  /** Of the unit's memory, and of its time for a micro-batch. */
  readonly bytes: number;
  readonly seconds: number;
}

function shareOf({ units }: PlacementProblem, sharers: readonly number[]): Burden {
  return { on: new Set(sharers), units, bytes: 1, seconds: 1 / Math.max(1, sharers.length) };
}

/** Devices that were alike stay so. */
function withBurden(devices: readonly StageDevice[], { on, units, bytes, seconds }: Burden): StageDevice[] {
  const known = new Map<RangeCosts, RangeCosts>();
  return devices.map((device) => {
    if (!on.has(device.id)) return device;
    const { costs } = device;
    const [memory, load] = [bytes * costs.memory(units - 1, units, 1), seconds * costs.load(units - 1, units)];
    const burdened: RangeCosts = known.get(costs) ?? {
      ...costs,
      memory: (first, end, inFlight) => costs.memory(first, end, inFlight) + memory,
      load: (first, end) => costs.load(first, end) + load,
    };
    known.set(costs, burdened);
    return { ...device, costs: burdened };
  });
}
