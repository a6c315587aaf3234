import { dtypeBytes } from "../common/dtype.ts";
import { matrixElements } from "../models/kinds/named-matrix.ts";
import type { Device } from "./devices.ts";
import { type Keeping, segmentLayers } from "./keeping.ts";
import { trainedMatrices } from "./memory/kind-memory.ts";
import { isRoundRobin } from "./memory.ts";
import { backwardTime, forwardTime } from "./placement/range-costs.ts";
import type { PlanRequest } from "./request.ts";
import type { Segment } from "./segments.ts";
import { gpuUpdateTime } from "./time/gpu-time.ts";
import { layerTimer } from "./time/layer-time.ts";
import { linkRate } from "./time/rates.ts";

/** Predicted seconds of one micro-batch in one segment. */
export interface SegmentTime {
  readonly forward: number;
  readonly backward: number;
  /** Until its output is with the next segment: 0 on one device. The gradient takes as long in the other direction. */
  readonly transfer: number;
}

export interface PredictedTime {
  readonly segments: readonly SegmentTime[];
  /** Seconds of the gradient norm and the update, on the slowest device; 0 on CPUs where none was measured. */
  readonly update: number;
  /** Seconds of one optimizer step. */
  readonly step: number;
  /** Seconds of one pass over the held-out rows; null without any. */
  readonly evaluation: number | null;
  /** Share of the step in which the devices that hold segments do not compute. */
  readonly bubble: number;
  readonly tokensPerSecond: number;
}

/**
 * m micro-batches, largest load L of a device (or of a link, if slower), all segments' times and transfers S: a step takes m L
 * + (S − L), and with v segments a device interleaved m L + (S − L) / v; one micro-batch at a time it takes m S. Coordinators
 * that want the schedule's own stalls as well give the segments' times to src/schedule's simulator.
 */
export function predictTime(
  request: PlanRequest,
  segments: readonly Segment[],
  keeping: readonly Keeping[],
): PredictedTime {
  const { work } = request;
  const times = segmentTimes(request, segments, keeping);
  const loads = new Map<number, number>();
  for (const [index, { forward, backward }] of times.entries()) {
    const { device } = segments[index]!;
    loads.set(device, (loads.get(device) ?? 0) + forward + backward);
  }
  const compute = [...loads.values()].reduce((sum, load) => sum + load, 0);
  const through = compute + 2 * times.reduce((sum, { transfer }) => sum + transfer, 0);
  const shared = sharedLoads(request, loads);
  const largest = Math.max(...loads.values(), ...shared, ...times.map(({ transfer }) => transfer));
  const ranks = 1 + Math.max(...segments.map((segment) => segment.rank));
  const chunks = work.schedule === "interleaved" && isRoundRobin(segments, ranks) ? segments.length / ranks : 1;
  const batches =
    work.schedule === "sequential"
      ? work.microBatches * through
      : work.microBatches * largest + (through - largest) / chunks;
  const update = updateTime(request, segments);
  const step = batches + update;
  return {
    segments: times,
    update,
    step,
    evaluation: evaluationTime(request, segments, keeping),
    bubble: Math.max(0, 1 - (work.microBatches * compute) / (loads.size * step)),
    tokensPerSecond: (work.microBatches * work.meanTokens) / step,
  };
}

/** As a step's, of forward passes alone, in requests of several micro-batches each. */
function evaluationTime(
  request: PlanRequest,
  segments: readonly Segment[],
  keeping: readonly Keeping[],
): number | null {
  const { work } = request;
  const { evaluation } = work;
  if (evaluation === undefined) return null;
  const times = segmentTimes({ ...request, work: { ...work, ...evaluation } }, segments, keeping);
  const loads = new Map<number, number>();
  let through = 0;
  for (const [index, { forward, transfer }] of times.entries()) {
    const { device } = segments[index]!;
    loads.set(device, (loads.get(device) ?? 0) + forward);
    through += forward + transfer;
  }
  if (work.schedule === "sequential") return evaluation.microBatches * through;
  const transfers = times.map(({ transfer }) => transfer);
  const largest = Math.max(...loads.values(), ...sharedLoads(request, loads), ...transfers);
  return evaluation.microBatches * largest + evaluation.requests * (through - largest);
}

function segmentTimes(request: PlanRequest, segments: readonly Segment[], keeping: readonly Keeping[]): SegmentTime[] {
  const { work, spec, rates } = request;
  const devices = new Map(request.devices.map((device) => [device.id, device]));
  const timesOn = layerTimer(request);
  const bytes = work.meanTokens * spec.shape.hidden * dtypeBytes(request.computeDtype);
  const messageCompute = (from: Device, to: Device) => bytes * (linkRate(from, to, rates)?.compute ?? 0);
  return segments.map((segment, index) => {
    const device = devices.get(segment.device)!;
    const layers = timesOn(device);
    // What its messages take of the device itself: one in and one out each way, but at the ends.
    const neighbours = [segments[index - 1], segments[index + 1]].filter((other) => other !== undefined);
    const messages = neighbours.reduce((sum, other) => sum + messageCompute(device, devices.get(other.device)!), 0);
    let forward = messages;
    let backward = messages;
    const kept = keeping[index]!;
    for (const { layer, block, activations } of segmentLayers(request, segment, kept)) {
      const cached = block !== null && block < kept.cached;
      forward += forwardTime(layers[layer]!, cached);
      backward += backwardTime(layers[layer]!, activations === "recomputed", cached);
    }
    const next = segments[index + 1];
    return {
      forward,
      backward,
      transfer: next === undefined ? 0 : transferTime(device, devices.get(next.device)!, bytes, request),
    };
  });
}

/** On a crowded node the loads of all its devices, at the rate of those that it carries. */
function sharedLoads({ devices, rates }: PlanRequest, loads: ReadonlyMap<number, number>): number[] {
  return [...rates.crowded].map(([node, fullSpeed]) => {
    const there = devices.filter((device) => device.node === node);
    return there.reduce((sum, { id }) => sum + (loads.get(id) ?? 0), 0) / fullSpeed;
  });
}

function updateTime(request: PlanRequest, segments: readonly Segment[]): number {
  const { spec, rates, devices } = request;
  const trained = trainedMatrices(request);
  const totals = new Map<number, number>();
  for (const { device: id, firstLayer, lastLayer } of segments) {
    const device = devices.find((one) => one.id === id)!;
    const own = trained.filter(({ layer }) => firstLayer <= layer && layer <= lastLayer);
    const measured = rates.measured.get(id)?.update;
    const blocks = new Set(own.map(({ layer }) => layer).filter((layer) => spec.layers[layer]!.kind === "block")).size;
    const parameters = matrixElements(own);
    const assumed = device.kind === "cuda" ? gpuUpdateTime(device, parameters) : 0;
    totals.set(id, (totals.get(id) ?? 0) + (measured === undefined ? assumed : measured * blocks));
  }
  return Math.max(...totals.values());
}

function transferTime(from: Device, to: Device, bytes: number, { rates }: PlanRequest): number {
  const link = linkRate(from, to, rates);
  return link === null ? 0 : link.latency + bytes / link.bytesPerSecond;
}
