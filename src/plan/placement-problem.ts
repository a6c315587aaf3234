import type { Device } from "./devices.ts";
import { contextBytes } from "./memory/layer-memory.ts";
import { inFlight } from "./memory.ts";
import type { Stage } from "./placement/partition.ts";
import type { PlacementProblem } from "./placement/planner.ts";
import { type RangeCosts, trueCosts, unitsOf } from "./placement/range-costs.ts";
import type { PlanRequest } from "./request.ts";
import { fullCheckpointing } from "./segment-checkpointing.ts";
import { segmentsOf } from "./segments.ts";
import { layerTimer } from "./time/layer-time.ts";
import type { LayerWork } from "./time/layer-work.ts";
import { predictTime } from "./time.ts";

/** What the planner is asked: devices with a budget, ids ascending, and what runs of layers cost on each. */
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
    inFlight: (after) => inFlight(work.schedule, work.microBatches, after),
    stepTime: (stages) => {
      const segments = segmentsOf(layerDevicesOf(request, stages), sortedIds(request));
      return predictTime(request, segments, fullCheckpointing(request, segments)).step;
    },
  };
}

/** Devices that take as long for every layer share one object: the planner sees that they are alike. */
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

/** The device of each layer. */
export function layerDevicesOf({ spec }: PlanRequest, stages: readonly Stage[]): number[] {
  const units = unitsOf(spec.layers);
  return stages.flatMap(({ device, first, end }) =>
    units.slice(first, end).flatMap((unit) => new Array<number>(unit.end - unit.first).fill(device.id)),
  );
}

export function sortedIds({ devices }: PlanRequest): number[] {
  return devices.map((device) => device.id).sort((a, b) => a - b);
}
