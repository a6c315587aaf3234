import { mostHeld, type ScheduledSegment } from "../schedule/index.ts";
import type { Device } from "./devices.ts";
import { contextBytes } from "./memory/layer-memory.ts";
import type { Stage } from "./placement/partition.ts";
import type { PlacementProblem } from "./placement/planner.ts";
import { type RangeCosts, trueCosts, unitsOf } from "./placement/range-costs.ts";
import { type PlanRequest, policyOf } from "./request.ts";
import type { LayerDevices } from "./segments.ts";
import { layerTimer } from "./time/layer-time.ts";
import type { LayerWork } from "./time/layer-work.ts";

/** The planner's input: the devices that have a budget, ids ascending, and the costs of runs of layers on each. */
export function placementProblem(
  request: PlanRequest,
  budgets: ReadonlyMap<number, number>,
  costsOf: (device: Device) => RangeCosts,
  context: typeof contextBytes = contextBytes,
): PlacementProblem {
  const { work } = request;
  const devices = request.devices
    .filter((device) => (budgets.get(device.id) ?? 0) > 0)
    .sort((a, b) => a.id - b.id)
    .map((device) => {
      const costs = costsOf(device);
      return {
        id: device.id,
        node: device.node,
        capacity: budgets.get(device.id)! - context(device.kind),
        maxUnits: costs.units,
        costs,
      };
    });
  return {
    devices,
    units: unitsOf(request.spec.layers).length,
    inFlight: heldBefore(request),
    microBatches: work.microBatches,
  };
}

/** The most micro-batches in flight in a stage, by the number of stages after it: as the request's schedule holds them (interleaved: as 1F1B). */
function heldBefore({ work }: PlanRequest): PlacementProblem["inFlight"] {
  const known = new Map<number, number>();
  return (after, sharers) => {
    const key = after * MOST_DEVICES + sharers;
    const held = known.get(key) ?? heldInLine(after, sharers);
    known.set(key, held);
    return held;
  };
  function heldInLine(after: number, sharers: number): number {
    const ranks = Array.from({ length: Math.max(after + 1, sharers) }, (_, rank) => rank);
    const segments: ScheduledSegment[] = ranks.map((rank) => ({ ranks: [rank] }));
    if (sharers > 1) segments.push({ ranks: ranks.slice(-sharers) });
    const policy = policyOf(work) === "interleaved" ? "1f1b" : policyOf(work);
    const stage = ranks.length - 1 - after;
    const shape = { segments, microBatches: work.microBatches, policy };
    return mostHeld(shape, stage, (segment) => (segment === stage ? 1 : 0));
  }
}

const MOST_DEVICES = 2 ** 20;

/** Costs by device. Devices with the same times share one object, by which the planner knows that they are alike. */
export function costsByDevice(request: PlanRequest, offloading: boolean): (device: Device) => RangeCosts {
  const timesOn = layerTimer(request);
  const known = new Map<readonly LayerWork[], RangeCosts>();
  return (device) => {
    const times = timesOn(device);
    const costs = known.get(times) ?? trueCosts(request, times, offloading);
    known.set(times, costs);
    return costs;
  };
}

/** The devices of each layer, from those of each unit. */
export function layerDevicesOf({ spec }: Pick<PlanRequest, "spec">, unitDevices: LayerDevices): LayerDevices {
  return unitsOf(spec.layers).flatMap(({ first, end }, unit) =>
    new Array<readonly number[]>(end - first).fill(unitDevices[unit]!),
  );
}

/** The device of each unit. */
export function unitDevicesOf(stages: readonly Stage[]): LayerDevices {
  return stages.flatMap(({ device, first, end }) => new Array<readonly number[]>(end - first).fill([device.id]));
}

export function sortedIds({ devices }: PlanRequest): number[] {
  return devices.map((device) => device.id).sort((a, b) => a - b);
}
