import type { SchedulePolicy } from "../../common/schedule-policies.ts";
import { balancedPartition, type PartitionProblem, partitionNear, type Stage, type StageDevice } from "./partition.ts";
import type { PlacementProblem } from "./planner.ts";
import type { RangeCosts } from "./range-costs.ts";

/** A placement with the schedule that suits it. */
export interface Way {
  /** The devices of each unit, in pipeline order. Several take the unit's micro-batches in turn. */
  readonly unitDevices: readonly (readonly number[])[];
  readonly policy: SchedulePolicy;
}

/** The kinds of placement to try. */
export interface WayKinds {
  /** The schedule for one segment a device. Null: only several segments a device are tried. */
  readonly plain: SchedulePolicy | null;
  /** Whether to try several segments a device, dealt out round robin (Megatron-LM). */
  readonly dealt: boolean;
  /** Whether to try the last unit, with the head, on several devices. */
  readonly shared: boolean;
}

/** Every number of segments a device up to this is tried. Of larger ones, those that divide the blocks evenly. */
const EVERY_CHUNKS = 3;
export const MOST_CHUNKS = 8;

/**
 * Ways over these devices, with loads as even as possible. Ways without a shared head come first, then those with one; in each, first one
 * segment a device, then several. For several segments a device, the caller must check that the device's memory holds them all.
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
  // Without the embedding and the head.
  const blocks = units - 2;
  const counts = Array.from({ length: MOST_CHUNKS - 1 }, (_, index) => index + 2);
  return counts.filter((count) => count <= EVERY_CHUNKS || blocks % (count * devices) === 0);
}

/**
 * Groups of devices that could share the head: all, and, if that does not fit, half of them or two. Smaller groups are the last devices, which
 * hold the fewest activations. A group is no larger than the number of micro-batches.
 */
function sharersWorthTrying(devices: readonly StageDevice[], microBatches: number): number[][] {
  const all = Math.min(devices.length, microBatches);
  const counts = [all, all >> 1, 2].filter((count) => count >= 2);
  return [...new Set(counts)].map((count) => devices.slice(-count).map(({ id }) => id));
}

/** One segment a device, and the last unit on the last `count` devices. Devices that would hold nothing else are left out. */
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

/** `chunks` segments a device, dealt out round robin; null if there are too few units or too little memory. */
function dealt(
  problem: PlacementProblem,
  devices: readonly StageDevice[],
  chunks: number,
  sharers: readonly number[],
): Stage[] | null {
  // The shared unit's memory is divided among all rounds. Its time belongs to no round.
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
 * The target load of a segment in each round. All rounds together are a device's share of the work. A round's target is a whole number of
 * units, so that every device can meet it; the last round takes the rest.
 */
function roundTargets(devices: readonly StageDevice[], units: number, chunks: number): number[] {
  const share = 1 / devices.reduce((sum, { costs }) => sum + 1 / Math.max(Number.MIN_VALUE, costs.load(0, units)), 0);
  const { costs } = devices[0]!;
  const unit = costs.load(units >> 1, (units >> 1) + 1);
  if (unit <= 0) return Array<number>(chunks).fill(share / chunks);
  const upTo = (round: number) => (round === chunks ? share : unit * Math.round((share * round) / (unit * chunks)));
  return Array.from({ length: chunks }, (_, round) => upTo(round + 1) - upTo(round));
}

/** The partition problem of all units over these devices, without the last unit if several share it. */
function cutBefore(
  { units, inFlight }: PlacementProblem,
  devices: readonly StageDevice[],
  sharers: number,
): PartitionProblem {
  const to = sharers > 0 ? units - 1 : units;
  return { devices, required: null, from: 0, to, inFlight: (after) => inFlight(after, Math.max(1, sharers)) };
}

/** What sharing the last unit adds to each device that shares it. */
interface Burden {
  readonly on: ReadonlySet<number>;
  readonly units: number;
  /** The unit's memory, and its time for a micro-batch, on this device. */
  readonly bytes: number;
  readonly seconds: number;
}

function shareOf({ units }: PlacementProblem, sharers: readonly number[]): Burden {
  return { on: new Set(sharers), units, bytes: 1, seconds: 1 / Math.max(1, sharers.length) };
}

/** The devices with that burden added. Devices that were alike stay alike. */
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
