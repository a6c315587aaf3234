import { mostHeld } from "../schedule/index.ts";
import type { Device } from "./devices.ts";
import { type Activations, type Keeping, segmentLayers } from "./keeping.ts";
import { boundaryBytes, contextBytes, type LayerMemory, layerMemory } from "./memory/layer-memory.ts";
import { ON_THEIR_WAY, wholeActivations } from "./placement/range-costs.ts";
import { type PlanRequest, policyOf } from "./request.ts";
import type { Segment } from "./segments.ts";

/** Predicted bytes of one device. */
export interface DeviceMemory {
  /** Frozen weights as held. */
  readonly weights: number;
  /** Copies of quantised weights in the compute dtype. */
  readonly weightCache: number;
  /** Room in which the other quantised weights are expanded, one after another; 0 on CPUs. */
  readonly expansion: number;
  /** LoRA weights, gradients and optimizer state. */
  readonly lora: number;
  /** Kept for the backward pass by the micro-batches in flight. */
  readonly activations: number;
  /** The largest workspace of a layer, tensors being sent or received, and rotary tables. */
  readonly workspace: number;
  /** Key/value cache. */
  readonly cache: number;
  /** The driver's context, and what it adds by rounding allocations up; 0 on CPUs. */
  readonly context: number;
  readonly total: number;
  /** A GPU's embedding and offloaded activations, in the host's memory: not part of the total. */
  readonly hostWeights: number;
  readonly hostActivations: number;
}

/** Predicted bytes of each device, given the segments and what their blocks keep. A device without a segment needs nothing. */
export function predictMemory(
  request: PlanRequest,
  segments: readonly Segment[],
  keeping: readonly Keeping[],
): Map<number, DeviceMemory> {
  const layers = layerMemory(request);
  return new Map(
    request.devices.map((device) => [device.id, deviceMemory(request, device, layers, segments, keeping)]),
  );
}

/** Predicted bytes of one device. */
export function predictDeviceMemory(
  request: PlanRequest,
  segments: readonly Segment[],
  keeping: readonly Keeping[],
  id: number,
): DeviceMemory {
  const device = request.devices.find((one) => one.id === id)!;
  return deviceMemory(request, device, layerMemory(request), segments, keeping);
}

/** The bytes of a device without a segment. */
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
  hostWeights: 0,
  hostActivations: 0,
};

function deviceMemory(
  request: PlanRequest,
  device: Device,
  layers: readonly LayerMemory[],
  segments: readonly Segment[],
  keeping: readonly Keeping[],
): DeviceMemory {
  const own = segments.filter((segment) => segment.devices.includes(device.id));
  if (own.length === 0) return NO_MEMORY;
  const held = { weights: 0, host: 0, weightCache: 0, expansion: 0, lora: 0, cache: 0, workspace: 0, extra: 0 };
  const saved = own.map((segment) => {
    const { cached } = keeping[segment.index]!;
    const run = segmentLayers(request, segment, keeping[segment.index]!).map((at) => ({
      ...at,
      cost: layers[at.layer]!,
    }));
    for (const { cost, block } of run) {
      held.weights += cost.weights;
      held.host += cost.host;
      if (block !== null && block < cached) held.weightCache += cost.expanded;
      else held.expansion = Math.max(held.expansion, cost.expansion);
      held.extra += cost.extra;
      held.lora += cost.lora;
      held.cache += cost.cache;
    }
    const { stays, host, most } = microBatchMemory(run);
    held.workspace = Math.max(held.workspace, most - stays);
    return { segment, bytes: stays, host };
  });
  const context = contextBytes(device.kind) + held.extra;
  const ofAll = (bytes: (one: (typeof saved)[number]) => number) => {
    const kept = new Map(saved.map((one) => [one.segment.index, bytes(one)]));
    return heldActivations(request, segments, device.id, (segment) => kept.get(segment)!);
  };
  const activations = ofAll(({ bytes }) => bytes);
  const workspace = held.workspace + own.length * boundaryBytes(request);
  const { weights, weightCache, expansion, lora, cache } = held;
  return {
    ...{ weights, weightCache, expansion, lora, activations, workspace, cache, context },
    total: weights + weightCache + expansion + lora + activations + workspace + cache + context,
    hostWeights: held.host,
    hostActivations: ofAll(({ host }) => host),
  };
}

interface LayerRun {
  readonly cost: LayerMemory;
  readonly activations: Activations;
}

/**
 * Bytes of one micro-batch in one segment. `stays`: on the device between forward and backward. `host`: on the host in that time. `most`: the
 * peak on the device, while a layer runs: its own, what earlier layers left, and what is being copied to the host or back (of the blocks just
 * before it, the nearest with all that it saved).
 */
function microBatchMemory(run: readonly LayerRun[]): { stays: number; host: number; most: number } {
  const offloads = run.some(({ activations }) => activations === "offloaded");
  const waiting = run.map(({ cost, activations }) => {
    if (!offloads || activations === "kept") return 0;
    return activations === "offloaded" ? wholeActivations(cost) : cost.input;
  });
  let stays = 0;
  let most = 0;
  for (const [index, { cost, activations }] of run.entries()) {
    const near = Array.from({ length: ON_THEIR_WAY }, (_, i) => index - 1 - i).filter((at) => waiting[at]! > 0);
    const whole = near.find((at) => run[at]!.activations === "offloaded");
    const passing = near.reduce((sum, at) => sum + (at === whole ? waiting[at]! : run[at]!.cost.input), 0);
    most = Math.max(most, stays + passing + cost.savedFull + cost.workspace);
    stays += activations === "kept" ? cost.savedFull : cost.saved - (waiting[index]! > 0 ? cost.input : 0);
  }
  return { stays, host: waiting.reduce((sum, bytes) => sum + bytes, 0), most };
}

/** Bytes of all micro-batches in flight on a device, from the bytes of one in each of its segments. */
export function heldActivations(
  { work }: Pick<PlanRequest, "work">,
  segments: readonly Segment[],
  device: number,
  bytes: (segment: number) => number,
): number {
  const own = segments.find(({ devices }) => devices.includes(device))!;
  const rank = own.ranks[own.devices.indexOf(device)]!;
  return mostHeld({ segments, microBatches: work.microBatches, policy: policyOf(work) }, rank, bytes);
}
