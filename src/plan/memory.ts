import type { Device } from "./devices.ts";
import { boundaryBytes, contextBytes, type LayerMemory, layerMemory } from "./layer-memory.ts";
import { blockWorkspace } from "./range-costs.ts";
import type { PipelinePolicy, PlanRequest } from "./request.ts";
import type { Segment } from "./segments.ts";

/** Predicted bytes of one device. */
export interface DeviceMemory {
  /** Frozen weights as held. */
  readonly weights: number;
  /** Quantised weights kept in the compute dtype beside them. */
  readonly weightCache: number;
  /** Room in which the other quantised weights take turns to be expanded; 0 on CPUs. */
  readonly expansion: number;
  /** LoRA weights, gradients and optimizer state. */
  readonly lora: number;
  /** Kept from forward to backward by the micro-batches in flight. */
  readonly activations: number;
  /** The largest layer's own work, tensors on their way, rotary tables. */
  readonly workspace: number;
  /** Key/value cache. */
  readonly cache: number;
  /** The driver's context, and what it rounds allocations up to; 0 on CPUs. */
  readonly context: number;
  readonly total: number;
}

/** How many of a segment's blocks, the first ones, recompute. By segment index. */
export type CheckpointedBlocks = readonly number[];
/** How many of a segment's blocks, the first ones, keep their quantised weights expanded. By segment index. */
export type CachedBlocks = readonly number[];

/**
 * Most micro-batches that are forwarded through a segment and not yet gone back, `after` segments from the end (src/schedule keeps to
 * it). Interleaving falls back to 1F1B unless segments go round robin, see heldInterleaved.
 */
export function inFlight(policy: PipelinePolicy, microBatches: number, after: number): number {
  if (policy === "sequential") return 1;
  if (policy === "gpipe") return microBatches;
  return Math.min(microBatches, after + 1);
}

/** What each device takes, given the segments and how many blocks of each recompute and are cached. Devices without a segment take nothing. */
export function predictMemory(
  request: PlanRequest,
  segments: readonly Segment[],
  checkpointed: CheckpointedBlocks,
  cached: CachedBlocks,
): Map<number, DeviceMemory> {
  const layers = layerMemory(request);
  const boundary = boundaryBytes(request);
  const result = new Map<number, DeviceMemory>();
  for (const device of request.devices) {
    const own = segments.filter((segment) => segment.device === device.id);
    result.set(
      device.id,
      own.length === 0
        ? NO_MEMORY
        : deviceMemory(request, device, layers, segments, own, checkpointed, cached, boundary),
    );
  }
  return result;
}

/** Of a device without a segment. */
export const NO_MEMORY: DeviceMemory = {
  weights: 0,
  weightCache: 0,
  expansion: 0,
  lora: 0,
  activations: 0,
  workspace: 0,
  cache: 0,
  context: 0,
  total: 0,
};

function deviceMemory(
  request: PlanRequest,
  device: Device,
  layers: readonly LayerMemory[],
  segments: readonly Segment[],
  own: readonly Segment[],
  checkpointed: CheckpointedBlocks,
  cached: CachedBlocks,
  boundary: number,
): DeviceMemory {
  const held = { weights: 0, weightCache: 0, expansion: 0, lora: 0, cache: 0, workspace: 0, extra: 0 };
  const saved = own.map((segment) => {
    let bytes = 0;
    const inCache = cached[segment.index]!;
    for (const { layer, recomputes, block } of segmentLayers(request, segment, checkpointed[segment.index]!)) {
      const cost = layers[layer]!;
      held.weights += cost.weights;
      if (block !== null && block < inCache) held.weightCache += cost.expanded;
      else held.expansion = Math.max(held.expansion, cost.expansion);
      held.extra += cost.extra;
      held.lora += cost.lora;
      held.cache += cost.cache;
      held.workspace = Math.max(held.workspace, blockWorkspace(cost, recomputes));
      bytes += recomputes ? cost.saved : cost.savedFull;
    }
    return { segment, bytes };
  });
  const context = contextBytes(device.kind) + held.extra;
  const activations = heldActivations(request.work.schedule, request.work.microBatches, segments, saved);
  const workspace = held.workspace + own.length * boundary;
  const { weights, weightCache, expansion, lora, cache } = held;
  const total = weights + weightCache + expansion + lora + activations + workspace + cache + context;
  return { weights, weightCache, expansion, lora, activations, workspace, cache, context, total };
}

export function blocksOf({ spec }: Pick<PlanRequest, "spec">, { firstLayer, lastLayer }: Segment): number {
  return spec.layers.slice(firstLayer, lastLayer + 1).filter(({ kind }) => kind === "block").length;
}

/** The layers of a segment, the number of each that is a block among its blocks, and whether it recomputes: the first `count` blocks do. */
export function segmentLayers(
  { spec }: Pick<PlanRequest, "spec">,
  { firstLayer, lastLayer }: Segment,
  count: number,
): { layer: number; block: number | null; recomputes: boolean }[] {
  let blocks = 0;
  return spec.layers.slice(firstLayer, lastLayer + 1).map(({ kind }, offset) => {
    const block = kind === "block" ? blocks++ : null;
    return { layer: firstLayer + offset, block, recomputes: block !== null && block < count };
  });
}

function heldActivations(
  policy: PipelinePolicy,
  microBatches: number,
  segments: readonly Segment[],
  saved: readonly { readonly segment: Segment; readonly bytes: number }[],
): number {
  const ranks = 1 + Math.max(...segments.map((segment) => segment.rank));
  if (policy === "interleaved" && saved.length > 1 && isRoundRobin(segments, ranks)) {
    return heldInterleaved(microBatches, ranks, saved);
  }
  return saved.reduce(
    (sum, { segment, bytes }) => sum + bytes * inFlight(policy, microBatches, segments.length - 1 - segment.index),
    0,
  );
}

/** Megatron's warm-up and one, each at the size of the device's largest segment. */
function heldInterleaved(
  microBatches: number,
  ranks: number,
  saved: readonly { readonly segment: Segment; readonly bytes: number }[],
): number {
  const position = saved[0]!.segment.index;
  const most = 2 * (ranks - position - 1) + (saved.length - 1) * ranks + 1;
  const largest = Math.max(...saved.map(({ bytes }) => bytes));
  // A last group smaller than the others breaks the beat: at most another group more.
  const ragged = microBatches % ranks === 0 ? 0 : ranks;
  return Math.min(microBatches * saved.length, most + ragged) * largest;
}

/** Segment i on rank i mod p: what src/schedule interleaves. */
export function isRoundRobin(segments: readonly Segment[], ranks: number): boolean {
  return segments.length % ranks === 0 && segments.every(({ rank }, index) => rank === index % ranks);
}
