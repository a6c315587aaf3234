import type { LayerSpec } from "../../models/spec.ts";
import { boundaryBytes, type LayerMemory, layerMemory } from "../memory/layer-memory.ts";
import type { PlanRequest } from "../request.ts";
import type { LayerWork } from "../time/layer-work.ts";

/** What consecutive units cost the device that holds them. A unit is the smallest part that placement moves. */
export interface RangeCosts {
  readonly units: number;
  /** Bytes without the device's own context, with `inFlight` micro-batches between their forward and backward pass. */
  memory(first: number, end: number, inFlight: number): number;
  /** Bytes of frozen weights, which `memory` includes. */
  weights(first: number, end: number): number;
  /** Seconds of one micro-batch, forward and backward. */
  load(first: number, end: number): number;
}

/** Layers [first, end) of each unit. Every layer is a unit, except that the final norm goes with the head. */
export function unitsOf(layers: readonly LayerSpec[]): { readonly first: number; readonly end: number }[] {
  const units = layers.map((_, index) => ({ first: index, end: index + 1 }));
  const norm = layers.findIndex((layer, index) => layer.kind === "norm" && layers[index + 1]?.kind === "head");
  if (norm >= 0) units.splice(norm, 2, { first: norm, end: norm + 2 });
  return units;
}

/**
 * Costs of the request's layers as memory.ts and time.ts count them, with the checkpointing that placement assumes. `times`: of each layer on the
 * device. `offloading`: some blocks' activations, and the inputs of all others, are on the host.
 */
export function trueCosts(request: PlanRequest, times: readonly LayerWork[], offloading: boolean): RangeCosts {
  const recomputes = request.work.checkpointing !== "none";
  const cached = request.weightCache === "on";
  const memory = layerMemory(request);
  const units = unitsOf(request.spec.layers);
  const inUnit = <T>(list: readonly T[], unit: { first: number; end: number }) => list.slice(unit.first, unit.end);
  return rangeCosts(
    units.map((unit) => {
      const parts = inUnit(memory, unit);
      return {
        weights: sum(parts, (part) => part.weights + (cached ? part.expanded : 0)),
        held: sum(parts, (part) => part.lora + part.cache + part.extra),
        expansion: cached ? 0 : Math.max(...parts.map((part) => part.expansion)),
        saved: sum(parts, (part) => (recomputes ? part.saved - (offloading ? part.input : 0) : part.savedFull)),
        workspace: Math.max(
          ...parts.map((part) => blockWorkspace(part, recomputes) + (offloading ? onTheWay(part) : 0)),
        ),
        time: sum(inUnit(times, unit), (part) => layerTime(part, recomputes, cached)),
      };
    }),
    boundaryBytes(request),
  );
}

/** Tensors of this many blocks before the running one may be being copied to the host or back (native/model/offload.cpp). */
export const ON_THEIR_WAY = 3;

/** Bytes of an offloaded block on the host: all it saved except LoRA's inner vectors. */
export function wholeActivations({ input, saved, savedFull }: LayerMemory): number {
  return input + savedFull - saved;
}

/** Bytes on the device while a block runs: its own input, another block's activations, and inputs of further blocks. */
function onTheWay(block: LayerMemory): number {
  return block.input === 0 ? 0 : wholeActivations(block) + ON_THEIR_WAY * block.input;
}

export function blockWorkspace({ workspace, recompute }: LayerMemory, recomputes: boolean): number {
  return workspace + (recomputes ? recompute : 0);
}

/** Seconds of a micro-batch's forward and backward pass through a layer. */
export function layerTime(layer: LayerWork, recomputes: boolean, cached: boolean): number {
  return forwardTime(layer, cached) + backwardTime(layer, recomputes, cached);
}

export function forwardTime({ forward, expansion }: LayerWork, cached: boolean): number {
  return forward > 0 && !cached ? forward + expansion : forward;
}

export function backwardTime(
  { backward, recompute, expansion }: LayerWork,
  recomputes: boolean,
  cached: boolean,
): number {
  if (backward === 0) return 0;
  const again = recomputes ? recompute : 0;
  return backward + again + (cached ? 0 : expansion * (again > 0 ? 2 : 1));
}

export interface UnitCost {
  /** Bytes of frozen weights, with the copies that a weight cache must add. */
  readonly weights: number;
  /** Bytes of everything else that is held for the whole run. */
  readonly held: number;
  /** Bytes of a micro-batch in flight. */
  readonly saved: number;
  readonly workspace: number;
  /** Bytes of room for expansion. A device needs the largest of its units', beside the workspace. */
  readonly expansion: number;
  /** Seconds of a micro-batch, forward and backward. */
  readonly time: number;
}

/** Answers each query in constant time, from prefix sums and from the largest workspace and expansion of every range. */
export function rangeCosts(costs: readonly UnitCost[], overhead: number): RangeCosts {
  const weights = prefixSums(costs.map((cost) => cost.weights));
  const held = prefixSums(costs.map((cost) => cost.weights + cost.held));
  const saved = prefixSums(costs.map((cost) => cost.saved));
  const time = prefixSums(costs.map((cost) => cost.time));
  const units = costs.length;
  const workspace = largest(costs.map((cost) => cost.workspace));
  const expansion = largest(costs.map((cost) => cost.expansion));
  return {
    units,
    memory: (first, end, inFlight) =>
      held[end]! -
      held[first]! +
      inFlight * (saved[end]! - saved[first]!) +
      workspace(first, end) +
      expansion(first, end) +
      overhead,
    weights: (first, end) => weights[end]! - weights[first]!,
    load: (first, end) => time[end]! - time[first]!,
  };
}

/** The largest value of every range [first, end). */
function largest(values: readonly number[]): (first: number, end: number) => number {
  const units = values.length;
  const table = new Float64Array(units * (units + 1));
  for (let first = 0; first < units; first++) {
    let most = 0;
    for (let end = first + 1; end <= units; end++) {
      most = Math.max(most, values[end - 1]!);
      table[first * (units + 1) + end] = most;
    }
  }
  return (first, end) => table[first * (units + 1) + end]!;
}

function prefixSums(values: readonly number[]): Float64Array {
  const sums = new Float64Array(values.length + 1);
  for (const [index, value] of values.entries()) sums[index + 1] = sums[index]! + value;
  return sums;
}

function sum<T>(items: readonly T[], value: (item: T) => number): number {
  return items.reduce((total, item) => total + value(item), 0);
}
