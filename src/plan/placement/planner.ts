import type { NamedStrategy } from "../request.ts";
import {
  balancedPartition,
  feasiblePartition,
  type PartitionProblem,
  type Stage,
  type StageDevice,
  sequentialPartition,
  stageLoad,
  stageMemory,
} from "./partition.ts";
import { type Way, type WayKinds, waysOver } from "./ways.ts";

/** The facts of a request that the planner needs. */
export interface PlacementProblem {
  /** By ascending id. */
  readonly devices: readonly PlacementDevice[];
  readonly units: number;
  /** The most micro-batches in flight in a stage with `stagesAfter` after it, if `sharers` devices share the last unit (1: it is not shared). */
  readonly inFlight: (stagesAfter: number, sharers: number) => number;
  readonly microBatches: number;
}

export interface PlacementDevice extends StageDevice {
  readonly node: string;
}

/** Strategies that put every layer on one device and give each device consecutive layers. */
export type PlainStrategy = Exclude<NamedStrategy, "auto" | "fastest">;

/** The stages in pipeline order; null if the units do not fit the devices. */
export function place(problem: PlacementProblem, strategy: PlainStrategy): Stage[] | null {
  const usable = problem.devices.filter((device) => device.capacity > 0);
  if (usable.length === 0) return null;
  switch (strategy) {
    case "balanced":
      return balanced(problem, byNode(usable));
    case "balanced_low_0":
      return lowZero(problem, usable);
    case "sequential":
      return firstThatFits([usable, ...otherOrders(usable)], (devices) => sequentialPartition(whole(problem, devices)));
  }
}

/**
 * Placements of these kinds to consider. `fastest` also considers fewer devices, down to one, and the devices of each node alone. In each group
 * the plain ones come first.
 */
export function* waysToPlace(
  problem: PlacementProblem,
  strategy: NamedStrategy,
  kinds: WayKinds,
): Iterable<WaysOverGroup> {
  const usable = trimmed(byNode(problem.devices.filter((device) => device.capacity > 0)), problem.units);
  if (usable.length === 0) return;
  const groups = strategy === "fastest" ? deviceGroups(usable, problem.units) : [usable];
  for (const group of groups.sort((a, b) => b.length - a.length)) {
    const speed = group.reduce((sum, { costs }) => sum + 1 / Math.max(Number.MIN_VALUE, costs.load(0, costs.units)), 0);
    yield {
      devices: group.length,
      least: problem.microBatches / speed,
      ways: () => waysOver(problem, group, kinds, (devices) => balanced(problem, devices)),
    };
  }
}

/** Ways over one group of devices. */
export interface WaysOverGroup {
  readonly devices: number;
  /** A lower bound on their step, in seconds: no device waits. */
  readonly least: number;
  ways(): Way[];
}

/** The partition problem of all units and all usable devices, for reports. */
export function wholeProblem(problem: PlacementProblem): PartitionProblem {
  const positive = problem.devices.map((device) => ({ ...device, capacity: Math.max(1, device.capacity) }));
  return whole(problem, trimmed(byNode(positive), problem.units));
}

function whole({ units, inFlight }: PlacementProblem, devices: readonly StageDevice[]): PartitionProblem {
  return { devices, required: null, from: 0, to: units, inFlight: (after) => inFlight(after, 1) };
}

/** The best partition over the orders of devices that are tried. Another order than the given one must be clearly better. */
function balanced(problem: PlacementProblem, devices: readonly PlacementDevice[]): Stage[] | null {
  const few = trimmed(devices, problem.units);
  let best: Stage[] | null = null;
  for (const order of [few, ...otherOrders(few)]) {
    const stages = balancedPartition(whole(problem, order));
    if (stages !== null && (best === null || largestLoad(stages) < 0.99 * largestLoad(best))) best = stages;
  }
  return best;
}

/**
 * Device 0, the first usable one, takes the embedding and as few blocks as the others can't hold, but at least one, so that it takes part in
 * training. If the embedding alone would make it the heaviest device, it takes one block, or the end of the model, after another device.
 */
function lowZero(problem: PlacementProblem, usable: readonly PlacementDevice[]): Stage[] | null {
  const [zero, ...rest] = usable;
  const others = trimmed(byNode(rest), problem.units);
  if (others.length === 0 || problem.units < 2) return balanced(problem, usable);
  const inFront = zeroInFront(problem, zero!, others);
  if (inFront !== null && isLightest(inFront, zero!, problem)) return inFront;
  const behind = zeroBehind(problem, zero!, others);
  if (inFront === null || (behind !== null && isLightest(behind, zero!, problem))) {
    return behind ?? inFront ?? balanced(problem, byNode(usable));
  }
  return inFront;
}

function zeroInFront(problem: PlacementProblem, zero: PlacementDevice, others: readonly StageDevice[]): Stage[] | null {
  for (let end = Math.min(2, problem.units - 1); end < problem.units; end++) {
    const rest = { ...whole(problem, others), from: end };
    if (feasiblePartition(rest, Number.POSITIVE_INFINITY, 1) === null) continue;
    const stages = balancedPartition(rest)!;
    const first = { device: zero, first: 0, end };
    return stageMemory(first, problem.inFlight(stages.length, 1)) <= zero.capacity ? [first, ...stages] : null;
  }
  return null;
}

function zeroBehind(problem: PlacementProblem, zero: PlacementDevice, others: readonly StageDevice[]): Stage[] | null {
  for (let most = 1; most < problem.units; most++) {
    const [first, ...rest] = others;
    const devices = [first!, { ...zero, maxUnits: most }, ...rest];
    const stages = balancedPartition({ ...whole(problem, devices), required: zero.id });
    if (stages !== null) return stages;
  }
  return null;
}

/** Whether device 0 has the least frozen weights, the least peak memory and the least compute. */
function isLightest(stages: readonly Stage[], zero: StageDevice, { inFlight }: PlacementProblem): boolean {
  const weights = stages.map((stage, index) => [
    stage.device.costs.weights(stage.first, stage.end),
    stageMemory(stage, inFlight(stages.length - 1 - index, 1)),
    stageLoad(stage),
  ]);
  const own = weights[stages.findIndex((stage) => stage.device.id === zero.id)]!;
  return weights.every((other) => own.every((value, measure) => value <= other[measure]!));
}

/** Groups of devices to consider: some of the numbers between one and all, and those that divide the blocks evenly; each node's; all. */
function deviceGroups(few: readonly PlacementDevice[], units: number): PlacementDevice[][] {
  const counts = new Set<number>();
  for (let count = 1; count < few.length; count = Math.max(count + 1, Math.floor(count * 1.5))) counts.add(count);
  // Without the embedding and the head.
  const blocks = Math.max(1, units - 2);
  for (let each = 1; blocks / each >= few.length / 4; each++) counts.add(Math.ceil(blocks / each));
  const some = [...counts].filter((count) => count < few.length).sort((a, b) => a - b);
  return [...some.map((count) => few.slice(0, count)), ...strongestNodes(few), [...few]];
}

/** If there are several nodes: the devices of each of the fastest few. */
function strongestNodes(devices: readonly PlacementDevice[]): PlacementDevice[][] {
  const nodes = [...new Set(devices.map((device) => device.node))];
  if (nodes.length === 1) return [];
  const speed = (group: readonly PlacementDevice[]) =>
    group.reduce((sum, { costs }) => sum + 1 / Math.max(Number.MIN_VALUE, costs.load(0, costs.units)), 0);
  const groups = nodes.map((node) => devices.filter((device) => device.node === node));
  return groups.sort((a, b) => speed(b) - speed(a)).slice(0, MOST_NODES_ALONE);
}

const MOST_NODES_ALONE = 4;

/** The devices sorted by node, so that a pipeline crosses from node to node as rarely as possible. */
function byNode(devices: readonly PlacementDevice[]): PlacementDevice[] {
  const nodes = [...new Set(devices.map((device) => device.node))];
  return nodes.flatMap((node) => devices.filter((device) => device.node === node));
}

/** The devices without those that could not be used: of equal devices in a row, no more than there are units. */
function trimmed<T extends StageDevice>(devices: readonly T[], units: number): T[] {
  let run = 0;
  return devices.filter((device, index) => {
    const previous = devices[index - 1];
    const same = previous !== undefined && previous.capacity === device.capacity && previous.costs === device.costs;
    run = same ? run + 1 : 1;
    return run <= units;
  });
}

/** Orders with the largest device first or last: the largest layers, the embedding and the head, are at the model's ends. */
function otherOrders<T extends StageDevice>(devices: readonly T[]): T[][] {
  const bySize = [...devices].sort((a, b) => b.capacity - a.capacity);
  const [largest, second] = bySize;
  if (largest === undefined || second === undefined || largest.capacity === bySize.at(-1)!.capacity) return [];
  const without = (...left: T[]) => devices.filter((device) => !left.includes(device));
  const orders = [
    [largest, ...without(largest)],
    [...without(largest), largest],
    [largest, ...without(largest, second), second],
    [second, ...without(largest, second), largest],
  ];
  const key = (order: readonly T[]) => order.map(({ id }) => id).join();
  const seen = new Set([key(devices)]);
  return orders.filter((order) => !seen.has(key(order)) && seen.add(key(order)));
}

function largestLoad(stages: readonly Stage[]): number {
  return Math.max(...stages.map(stageLoad));
}

function firstThatFits<T>(options: readonly T[], attempt: (option: T) => Stage[] | null): Stage[] | null {
  for (const option of options) {
    const stages = attempt(option);
    if (stages !== null) return stages;
  }
  return null;
}
