import { arenaMargin } from "./arena.ts";
import { type Device, gpusOf } from "./devices.ts";
import { blocksOf, PLAIN_KEEPING, segmentLayers } from "./keeping.ts";
import { layerMemory } from "./memory/layer-memory.ts";
import { heldActivations } from "./memory.ts";
import { forwardTime, wholeActivations } from "./placement/range-costs.ts";
import type { PlanRequest } from "./request.ts";
import type { Segment } from "./segments.ts";
import { layerTimer } from "./time/layer-time.ts";
import { hostLinkRate } from "./time/rates.ts";

/** A plan counts on this share of the rate to the host's memory: copies must never delay a pass. */
const LINK_SHARE = 0.85;
/** A plan takes this share of the host's free memory, unless max_memory has a "cpu" entry. */
const HOST_SHARE = 0.5;

/** Whether a plan for this request may offload activations to a host. */
export function offloadsActivations({ activationOffload, work, devices }: PlanRequest): boolean {
  return activationOffload === "auto" && work.checkpointing !== "none" && devices.some(({ kind }) => kind === "cuda");
}

/**
 * How many of a segment's blocks can offload their activations. The link must carry them, and the inputs of the other blocks, while the
 * segment's forward pass runs (the backward pass takes longer). The host's memory must hold them for all micro-batches in flight. 0 on CPUs,
 * and without --activation-offload. Reasons: docs/decisions/compute/activation-offload.md.
 */
export function mostOffloaded(request: PlanRequest, segments: readonly Segment[], segment: Segment): number {
  // A segment with blocks has one device.
  const device = request.devices.find(({ id }) => id === segment.devices[0])!;
  if (!offloadsActivations(request) || device.kind !== "cuda") return 0;
  const layers = layerMemory(request);
  const blocks = blocksOf(request, segment);
  const own = segmentLayers(request, segment, PLAIN_KEEPING).filter(({ block }) => block !== null);
  const bytes = (of: (layer: (typeof layers)[number]) => number) =>
    Math.max(0, ...own.map(({ layer }) => of(layers[layer]!)));
  const input = bytes((layer) => layer.input);
  const whole = bytes(wholeActivations);
  if (input === 0) return 0;
  const used = new Set(segments.flatMap((other) => other.devices));
  const ours = gpusOf(
    request.devices.filter(({ id }) => used.has(id)),
    device.node,
  );
  const sharers = device.hostSharers ?? ours;
  const carried = LINK_SHARE * hostLinkRate(device, sharers) * forwardSeconds(request, device, segment);
  const { tokens, meanTokens } = request.work;
  const byTime = ((carried * tokens) / meanTokens - blocks * input) / (whole - input);
  // Every segment of the device offloads the same number of blocks.
  const held = heldActivations(request, segments, device.id, (own) => Math.min(1, blocksOf(request, segments[own]!)));
  const embedding = layers.reduce((sum, { host }) => sum + host, 0);
  const room = hostBudget(request, device, embedding, ours, sharers) / (held * arenaMargin);
  const byRoom = (room - blocks * input) / (whole - input);
  return Math.max(0, Math.min(blocks, Math.floor(byTime), Math.floor(byRoom)));
}

function forwardSeconds(request: PlanRequest, device: Device, { firstLayer, lastLayer }: Segment): number {
  return layerTimer(request)(device)
    .slice(firstLayer, lastLayer + 1)
    .reduce((sum, layer) => sum + forwardTime(layer, request.weightCache === "on"), 0);
}

/** Bytes of the host's memory for one GPU's offloaded activations: what embeddings leave, in equal parts for the GPUs that use it. */
function hostBudget(request: PlanRequest, device: Device, embedding: number, ours: number, sharers: number): number {
  const given = request.maxMemory?.get("cpu");
  const all = given ?? HOST_SHARE * (device.hostMemoryBytes ?? 0);
  const pipelines = sharers / ours;
  return Math.max(0, all - pipelines * embedding) / sharers;
}

/** Bytes of host memory that a rank allocates for these predicted bytes. */
export function hostRoomBytes({ hostActivations }: { readonly hostActivations: number }): number {
  return Math.ceil(hostActivations * arenaMargin);
}
