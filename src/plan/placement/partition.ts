import type { RangeCosts } from "./range-costs.ts";

/** A device as the partition sees it. */
export interface StageDevice {
  readonly id: number;
  /** Bytes for its units: the budget less what the device needs anyway; above 0. */
  readonly capacity: number;
  /** Most units it may take. */
  readonly maxUnits: number;
  readonly costs: RangeCosts;
}

/** A device with its units [first, end). */
export interface Stage {
  readonly device: StageDevice;
  readonly first: number;
  readonly end: number;
}

export interface PartitionProblem {
  /** In pipeline order. Any of them may stay unused, except the one whose id is `required`. */
  readonly devices: readonly StageDevice[];
  readonly required: number | null;
  /** The units to place are [from, to). */
  readonly from: number;
  readonly to: number;
  /** The most micro-batches in flight in a stage with this many stages after it. */
  readonly inFlight: (stagesAfter: number) => number;
}

/** Bisection stops when a bound is within this share of the best. */
const PRECISION = 1e-7;
const NOT_REACHED = Number.MAX_SAFE_INTEGER;

export function stageMemory({ device, first, end }: Stage, inFlight: number): number {
  return device.costs.memory(first, end, inFlight);
}

/** Seconds of compute for a micro-batch. */
export function stageLoad({ device, first, end }: Stage): number {
  return device.costs.load(first, end);
}

/**
 * Partitions the units into contiguous stages over the devices, in their order; null if nothing fits. The goals, in turn: the smallest
 * largest load; then
 * the smallest largest share of a device's capacity; then the most even loads (least sum of squares); then the fewest devices.
 *
 * Whether bounds on load and memory can be met is found by dynamic programming over (device, stages so far), from the last device to the
 * first. Costs grow with a range, so of all partial solutions the one with the fewest units left is best, and a state is one number.
 */
export function balancedPartition(problem: PartitionProblem): Stage[] | null {
  const start = feasiblePartition(problem, Number.POSITIVE_INFINITY, 1);
  if (start === null) return null;
  const loadOf = (stages: readonly Stage[]) => Math.max(...stages.map(stageLoad));
  const shareOf = (stages: readonly Stage[]) =>
    Math.max(...stages.map((stage, index) => stageShare(problem, stage, stages.length - 1 - index)));
  const fastest = tighten(start, loadOf, (bound) => feasiblePartition(problem, bound, 1));
  const load = loadOf(fastest) * (1 + 2 * PRECISION);
  const leanest = tighten(fastest, shareOf, (bound) => feasiblePartition(problem, load, bound));
  return evenest(problem, leanest, load, Math.min(1, shareOf(leanest) * (1 + 2 * PRECISION)));
}

/** The partition that exceeds capacities least, by the fullest device's share: shows what an infeasible request needs. */
export function leastOverfull(problem: PartitionProblem): Stage[] | null {
  const unbounded = Number.POSITIVE_INFINITY;
  const start = feasiblePartition(problem, unbounded, unbounded);
  if (start === null) return null;
  return tighten(
    start,
    (stages) => Math.max(...stages.map((stage, index) => stageShare(problem, stage, stages.length - 1 - index))),
    (bound) => feasiblePartition(problem, unbounded, bound),
  );
}

export function stageShare({ inFlight }: PartitionProblem, stage: Stage, after: number): number {
  return stageMemory(stage, inFlight(after)) / stage.device.capacity;
}

/** Finds the smallest bound that `attempt` can meet, by bisection. A success may reach less than its bound: the search goes on from there. */
function tighten(
  start: Stage[],
  measure: (stages: readonly Stage[]) => number,
  attempt: (bound: number) => Stage[] | null,
): Stage[] {
  let best = start;
  let high = measure(start);
  let low = 0;
  while (high - low > PRECISION * high) {
    const middle = (low + high) / 2;
    const found = attempt(middle);
    if (found === null) {
      low = middle;
    } else {
      best = found;
      high = measure(found);
    }
  }
  return best;
}

/** A partition over the fewest devices with every load at most `load` and every device's share at most `share`; null if there is none. */
export function feasiblePartition(problem: PartitionProblem, load: number, share: number): Stage[] | null {
  const { devices, from, to, inFlight } = problem;
  const most = Math.min(devices.length, to - from);
  // left[row][s]: fewest units left in front when the last `row` devices hold s stages.
  const left = [new Array<number>(most + 1).fill(NOT_REACHED)];
  left[0]![0] = to;
  // ends[row][s]: where the stage of the first of those devices ends, if it has one.
  const ends: (number | null)[][] = [[]];
  for (const device of [...devices].reverse()) {
    const behind = left.at(-1)!;
    const required = device.id === problem.required;
    const here = required ? new Array<number>(most + 1).fill(NOT_REACHED) : [...behind];
    const end = new Array<number | null>(most + 1).fill(null);
    for (let stages = 0; stages < most; stages++) {
      const reached = behind[stages]!;
      // A required device must take at least one unit, even if the devices after it could take everything: it may fit nothing else.
      const last = required && reached !== NOT_REACHED ? to : reached;
      for (let at = Math.max(reached, from + 1); at <= last && at !== NOT_REACHED; at++) {
        const first = furthest(device, at, from, inFlight(stages), load, share);
        if (first < at && first <= here[stages + 1]! && (first < here[stages + 1]! || end[stages + 1] === null)) {
          here[stages + 1] = first;
          end[stages + 1] = at;
        }
      }
    }
    left.push(here);
    ends.push(end);
  }
  const stages = left[devices.length]!.indexOf(from);
  return stages < 0 ? null : trace(devices, left, ends, stages);
}

function trace(devices: readonly StageDevice[], left: number[][], ends: (number | null)[][], count: number): Stage[] {
  const stages: Stage[] = [];
  let remaining = count;
  let reached = 0;
  for (let d = 0; d < devices.length && remaining > 0; d++) {
    const row = devices.length - d;
    const end = ends[row]![remaining] ?? null;
    if (end === null) continue;
    const first = Math.max(reached, left[row]![remaining]!);
    remaining -= 1;
    if (end <= first) continue;
    stages.push({ device: devices[d]!, first, end });
    reached = end;
  }
  return stages;
}

/** The lowest `first` for which the device can hold [first, end). Costs grow as `first` falls. */
function furthest(
  { costs, capacity, maxUnits }: StageDevice,
  end: number,
  from: number,
  inFlight: number,
  load: number,
  share: number,
): number {
  let low = Math.max(from, end - maxUnits);
  let high = end;
  while (low < high) {
    const first = (low + high) >> 1;
    const fits = costs.memory(first, end, inFlight) <= capacity * share && costs.load(first, end) <= load;
    if (fits) high = first;
    else low = first + 1;
  }
  return low;
}

/** The partition within the bounds with the least sum of squared loads: over the devices of `start`, then with one more device at a time. */
function evenest(problem: PartitionProblem, start: Stage[], load: number, share: number): Stage[] {
  const { devices, from, to } = problem;
  const used = new Set(start.map((stage) => stage.device.id));
  const spare = devices.filter((device) => !used.has(device.id));
  let best = start;
  let least = Number.POSITIVE_INFINITY;
  for (let count = start.length; count <= Math.min(devices.length, to - from); count++) {
    const chosen = devices.filter((device) => used.has(device.id));
    const found = leastSquares(problem, chosen, { load, share });
    if (found !== null && found.squares < least * (1 - PRECISION)) {
      best = found.stages;
      least = found.squares;
    }
    const next = spare.shift();
    if (next !== undefined) used.add(next.id);
  }
  return best;
}

/** The partition over all devices whose loads are nearest to `targets` (least sum of squares); null if it does not fit. */
export function partitionNear(problem: PartitionProblem, targets: readonly number[]): Stage[] | null {
  return leastSquares(problem, problem.devices, { load: Number.POSITIVE_INFINITY, share: 1, targets })?.stages ?? null;
}

/** The partition with the least sum of squares of load − target, at least one unit on every device. `targets` absent: 0. */
function leastSquares(
  { from, to, inFlight }: PartitionProblem,
  devices: readonly StageDevice[],
  {
    load,
    share,
    targets = [],
  }: { readonly load: number; readonly share: number; readonly targets?: readonly number[] },
): { stages: Stage[]; squares: number } | null {
  let squares = new Array<number>(to + 1).fill(Number.POSITIVE_INFINITY);
  squares[from] = 0;
  const starts: Int32Array[] = [];
  for (const [d, device] of devices.entries()) {
    const { costs } = device;
    const held = inFlight(devices.length - 1 - d);
    const target = targets[d] ?? 0;
    const next = new Array<number>(to + 1).fill(Number.POSITIVE_INFINITY);
    const start = new Int32Array(to + 1);
    for (let end = from + d + 1; end <= to - (devices.length - 1 - d); end++) {
      for (let first = end - 1; first >= Math.max(from + d, end - device.maxUnits); first--) {
        const time = costs.load(first, end);
        if (time > load || costs.memory(first, end, held) > device.capacity * share) break;
        const total = squares[first]! + (time - target) ** 2;
        if (total < next[end]!) {
          next[end] = total;
          start[end] = first;
        }
      }
    }
    squares = next;
    starts.push(start);
  }
  const total = squares[to]!;
  if (total === Number.POSITIVE_INFINITY) return null;
  const stages: Stage[] = [];
  let end = to;
  for (let d = devices.length - 1; d >= 0; d--) {
    const first = starts[d]![end]!;
    stages.unshift({ device: devices[d]!, first, end });
    end = first;
  }
  return { stages, squares: total };
}

/**
 * Fills the devices in order, each as full as possible, and skips a device that can't hold the next unit; null if nothing fits. Memory depends
 * on the number of stages: 1, 2, … are assumed until the partition needs no more than that.
 */
export function sequentialPartition({ devices, from, to, inFlight }: PartitionProblem): Stage[] | null {
  for (let assumed = 1; assumed <= Math.min(devices.length, to - from); assumed++) {
    const stages: Stage[] = [];
    let first = from;
    for (const device of devices) {
      if (first === to) break;
      const held = inFlight(Math.max(0, assumed - 1 - stages.length));
      let end = first;
      while (end < to && device.costs.memory(first, end + 1, held) <= device.capacity) end += 1;
      if (end === first) continue;
      stages.push({ device, first, end });
      first = end;
    }
    if (first === to && stages.length <= assumed) return stages;
  }
  return null;
}
