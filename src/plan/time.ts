import { matrixElements } from "../models/kinds/named-matrix.ts";
import type { Device } from "./devices.ts";
import { type Keeping, segmentLayers } from "./keeping.ts";
import { linkBytesPerToken } from "./link-bytes.ts";
import { lowestTrainable, trainedMatrices } from "./memory/kind-memory.ts";
import { backwardTime, forwardTime } from "./placement/range-costs.ts";
import { type PlanRequest, policyOf } from "./request.ts";
import type { Segment } from "./segments.ts";
import { gpuUpdateTime } from "./time/gpu-time.ts";
import { layerTimer } from "./time/layer-time.ts";
import { linkRate } from "./time/rates.ts";
import { longestTransfer, type PassesTime, passesTime, type StepShape, sharedCores } from "./time/step-time.ts";

/** Predicted seconds of one micro-batch in one segment. */
export interface SegmentTime {
  /** An entry for each of its devices. */
  readonly forward: readonly number[];
  readonly backward: readonly number[];
  /** Time to send its output to the next segment, over the slowest link; 0 on one device. The gradient takes as long in the other direction. */
  readonly transfer: number;
}

export interface PredictedTime {
  readonly segments: readonly SegmentTime[];
  /** Bytes of one activation, or of its gradient. */
  readonly messageBytes: number;
  /** Seconds of the gradient norm and the update, on the slowest device; 0 on CPUs without a measurement. */
  readonly update: number;
  /** Seconds of one optimizer step. */
  readonly step: number;
  /** Seconds of one pass over the held-out rows; null if there are none. */
  readonly evaluation: number | null;
  /** Share of the step in which the devices that hold segments do not compute. */
  readonly bubble: number;
  readonly tokensPerSecond: number;
}

/** Predicts a step's time. `passes` finds the time of its passes: by default, the step is simulated. */
export function predictTime(
  request: PlanRequest,
  segments: readonly Segment[],
  keeping: readonly Keeping[],
  passes: (shape: StepShape) => PassesTime = passesTime,
): PredictedTime {
  const { work } = request;
  const messageBytes = bytesOfMessage(request);
  const times = segmentTimes(request, segments, keeping);
  const { seconds, bubble } = passes(stepShape(request, segments, times));
  const update = updateTime(request, segments);
  const step = seconds + update;
  return {
    segments: times,
    messageBytes,
    update,
    step,
    evaluation: evaluationTime(request, segments, keeping),
    bubble: 1 - ((1 - bubble) * seconds) / step,
    tokensPerSecond: (work.microBatches * work.meanTokens) / step,
  };
}

function bytesOfMessage(request: PlanRequest): number {
  return request.work.meanTokens * linkBytesPerToken(request);
}

function stepShape(request: PlanRequest, segments: readonly Segment[], times: readonly SegmentTime[]): StepShape {
  const { work, rates } = request;
  const devices = [...request.devices].sort((a, b) => a.id - b.id);
  const lowest = lowestTrainable(request);
  return {
    segments: segments.map(({ ranks, lastLayer }, index) => ({
      ranks,
      needsBackward: lowest <= lastLayer,
      ...times[index]!,
    })),
    microBatches: work.microBatches,
    policy: policyOf(work),
    messageBytes: bytesOfMessage(request),
    linkOf: (from, to) => linkRate(devices[from]!, devices[to]!, rates),
    cores: sharedCores(
      devices.map(({ node }) => node),
      rates,
    ),
  };
}

/** Seconds of one evaluation: forward passes only, in requests of several micro-batches each. */
function evaluationTime(
  request: PlanRequest,
  segments: readonly Segment[],
  keeping: readonly Keeping[],
): number | null {
  const { work, rates } = request;
  const { evaluation } = work;
  if (evaluation === undefined) return null;
  const times = segmentTimes({ ...request, work: { ...work, ...evaluation } }, segments, keeping);
  const loads = new Map<number, number>();
  let through = 0;
  for (const [index, { forward, transfer }] of times.entries()) {
    const { devices } = segments[index]!;
    for (const [turn, device] of devices.entries()) {
      loads.set(device, (loads.get(device) ?? 0) + forward[turn]! / devices.length);
    }
    through += Math.max(...forward) + transfer;
  }
  if (work.schedule === "sequential") return evaluation.microBatches * through;
  const transfers = times.map(({ transfer }) => transfer);
  const crowded = [...rates.crowded].map(([node, fullSpeed]) => {
    const there = request.devices.filter((device) => device.node === node);
    return there.reduce((sum, { id }) => sum + (loads.get(id) ?? 0), 0) / fullSpeed;
  });
  const largest = Math.max(...loads.values(), ...crowded, ...transfers);
  return evaluation.microBatches * largest + evaluation.requests * Math.max(0, through - largest);
}

function segmentTimes(request: PlanRequest, segments: readonly Segment[], keeping: readonly Keeping[]): SegmentTime[] {
  const { rates } = request;
  const byId = new Map(request.devices.map((device) => [device.id, device]));
  const timesOn = layerTimer(request);
  const bytes = bytesOfMessage(request);
  return segments.map((segment, index) => {
    const neighbours = [segments[index - 1], segments[index + 1]].filter((other) => other !== undefined);
    const own = segmentLayers(request, segment, keeping[index]!);
    const { cached } = keeping[index]!;
    const forward: number[] = [];
    const backward: number[] = [];
    for (const id of segment.devices) {
      const device = byId.get(id)!;
      const layers = timesOn(device);
      // The device's own compute for its messages: one in and one out in each direction, except at the ends of the pipeline.
      const messageCompute = (to: Device) => bytes * (linkRate(device, to, rates)?.compute ?? 0);
      const messages = neighbours.reduce((sum, { devices }) => {
        const all = devices.map((other) => messageCompute(byId.get(other)!));
        return sum + all.reduce((total, one) => total + one, 0) / all.length;
      }, 0);
      const expanded = (block: number | null) => block !== null && block < cached;
      forward.push(own.reduce((sum, { layer, block }) => sum + forwardTime(layers[layer]!, expanded(block)), messages));
      backward.push(
        own.reduce(
          (sum, { layer, block, activations }) =>
            sum + backwardTime(layers[layer]!, activations === "recomputed", expanded(block)),
          messages,
        ),
      );
    }
    const next = segments[index + 1];
    const linkOf = (from: number, to: number) => linkRate(byId.get(from)!, byId.get(to)!, rates);
    const transfer = next === undefined ? 0 : longestTransfer(segment.devices, next.devices, bytes, linkOf);
    return { forward, backward, transfer };
  });
}

function updateTime(request: PlanRequest, segments: readonly Segment[]): number {
  const { spec, rates, devices } = request;
  const trained = trainedMatrices(request);
  const totals = new Map<number, number>();
  for (const { devices: held, firstLayer, lastLayer } of segments) {
    const own = trained.filter(({ layer }) => firstLayer <= layer && layer <= lastLayer);
    const blocks = new Set(own.map(({ layer }) => layer).filter((layer) => spec.layers[layer]!.kind === "block")).size;
    const parameters = matrixElements(own);
    for (const id of held) {
      const device = devices.find((one) => one.id === id)!;
      const measured = rates.measured.get(id)?.update;
      const assumed = device.kind === "cuda" ? gpuUpdateTime(device, parameters) : 0;
      totals.set(id, (totals.get(id) ?? 0) + (measured === undefined ? assumed : measured * blocks));
    }
  }
  return Math.max(...totals.values());
}
