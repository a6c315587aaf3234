import { remembered } from "../../common/remembered.ts";
import type { Device } from "../devices.ts";
import { eachAdapter, type MeasuredDevice, type PlanRequest, type TimePoint } from "../request.ts";
import { gpuLayerTimes } from "./gpu-time.ts";
import { type LayerWork, layerWork } from "./layer-work.ts";
import { deviceRate } from "./rates.ts";

/**
 * Seconds of every layer for one micro-batch on a device: measured if there is a measurement, else the layer's work at the device's assumed
 * rates. For several adapters: the mean over them.
 */
export const layerTimer = remembered((request: PlanRequest): ((device: Device) => LayerWork[]) => {
  const { measured } = request.rates;
  const known = new Map<string, LayerWork[]>();
  return (device) => {
    const own = measured.get(device.id);
    const key = `${device.kind} ${device.name} ${own === undefined ? "" : JSON.stringify(own)}`;
    const times = known.get(key) ?? meanOf(eachAdapter(request).map((one) => timesOf(one, device, own)));
    known.set(key, times);
    return times;
  };
});

function meanOf(adapters: readonly LayerWork[][]): LayerWork[] {
  const [first] = adapters;
  if (adapters.length === 1) return first!;
  return first!.map((_, layer) => {
    const of = (key: keyof LayerWork) => adapters.reduce((sum, own) => sum + own[layer]![key], 0) / adapters.length;
    return { forward: of("forward"), backward: of("backward"), recompute: of("recompute"), expansion: of("expansion") };
  });
}

function timesOf(request: PlanRequest, device: Device, measured: MeasuredDevice | undefined): LayerWork[] {
  const assumed = device.kind === "cuda" ? gpuLayerTimes(request, device) : cpuLayerTimes(request, device);
  return measured === undefined ? assumed : timed(request, assumed, measured);
}

/** Times on a CPU, of products alone: everything else takes little. */
function cpuLayerTimes(request: PlanRequest, device: Device): LayerWork[] {
  const rate = deviceRate(device, request.computeDtype, request.work.meanTokens);
  return layerWork(request).map(({ forward, backward, recompute }) => ({
    forward: forward / rate,
    backward: backward / rate,
    recompute: recompute / rate,
    expansion: 0,
  }));
}

/** Times from a measurement of one block. `assumed` tells how blocks differ: in LoRA pairs, windows, and whether they have a backward pass. */
function timed({ work, spec }: PlanRequest, assumed: readonly LayerWork[], measured: MeasuredDevice): LayerWork[] {
  const block = timesAt(measured.block, work.meanTokens);
  const head = timesAt(measured.head, work.meanLabelTokens);
  const reference = assumed[measured.blockLayer]!;
  return assumed.map((layer, index): LayerWork => {
    const { kind } = spec.layers[index]!;
    if (kind === "block") return scaled(layer, reference, block);
    if (kind === "head")
      return { ...head, backward: layer.backward > 0 ? head.backward : 0, recompute: 0, expansion: 0 };
    return layer;
  });
}

/** Scales a layer's assumed times by a measurement. Weights were expanded before the measured passes. */
function scaled(layer: LayerWork, reference: LayerWork, times: Omit<TimePoint, "tokens">): LayerWork {
  const of = (measured: number, pass: "forward" | "backward") =>
    reference[pass] > 0 ? (measured * layer[pass]) / reference[pass] : 0;
  const forward = of(times.forward, "forward");
  const recompute = layer.recompute > 0 ? forward : 0;
  return { forward, backward: of(times.backward, "backward"), recompute, expansion: layer.expansion };
}

/**
 * Interpolates between measured points. Outside them the nearest line goes on. No result is below half of what the lower point's seconds a
 * token would give.
 */
function timesAt(points: MeasuredDevice["block"], tokens: number): Omit<TimePoint, "tokens"> {
  const at = (of: (point: TimePoint) => number) => {
    const next = points.findIndex((point) => point.tokens >= tokens);
    const high = next < 0 ? points.length - 1 : Math.max(1, next);
    const [a, b] = [points[high - 1], points[high]];
    if (a === undefined || b === undefined) return (of(points[0]!) * tokens) / points[0]!.tokens;
    const line = of(a) + ((of(b) - of(a)) * (tokens - a.tokens)) / (b.tokens - a.tokens);
    return Math.max(line, (of(a) * Math.min(tokens, a.tokens)) / a.tokens / 2);
  };
  return { forward: at((point) => point.forward), backward: at((point) => point.backward) };
}
