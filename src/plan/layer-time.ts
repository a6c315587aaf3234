import type { LayerSpec } from "../models/spec.ts";
import type { Device } from "./devices.ts";
import { type LayerWork, layerWork } from "./layer-work.ts";
import { deviceRate, memoryRate, OVER_PRODUCTS } from "./rates.ts";
import type { MeasuredDevice, PlanRequest, TimePoint } from "./request.ts";

/** Seconds of every layer for one micro-batch on a device: measured where it was, else its work at the device's assumed rate. */
export function layerTimer(request: PlanRequest): (device: Device) => LayerWork[] {
  const { measured } = request.rates;
  const layers = layerWork(request);
  const known = new Map<string, LayerWork[]>();
  return (device) => {
    const own = measured.get(device.id);
    const key = own === undefined ? `${device.kind} ${device.name}` : JSON.stringify(own);
    const times =
      known.get(key) ?? (own === undefined ? assumed(request, layers, device) : timed(request, layers, own));
    known.set(key, times);
    return times;
  };
}

function assumed(request: PlanRequest, layers: readonly LayerWork[], device: Device): LayerWork[] {
  const { work, computeDtype, spec } = request;
  const rate = deviceRate(device, computeDtype, work.meanTokens);
  const over = OVER_PRODUCTS[device.kind];
  const seconds = (flop: number, factor: number, expansion: number) =>
    flop === 0 ? 0 : (factor * flop) / rate + expansion;
  return layers.map(({ forward, backward, recompute }, index) => {
    const expansion = expansionSeconds(request, spec.layers[index]!, device);
    return {
      forward: seconds(forward, over.forward, expansion),
      backward: seconds(backward, over.backward, expansion),
      recompute: seconds(recompute, over.forward, expansion),
    };
  });
}

/** Of each pass over a block whose weights a GPU holds quantised: codes and scales are read, 16-bit values written. */
function expansionSeconds({ holding }: PlanRequest, layer: LayerSpec, device: Device): number {
  const { method } = holding.quantization;
  if (layer.kind !== "block" || device.kind !== "cuda" || method === "none") return 0;
  const weights = layer.linears.reduce((sum, linear) => sum + linear.in * linear.out, 0);
  return (weights * (2 + (method === "4bit" ? 0.5 : 1))) / memoryRate(device);
}

function timed({ work, spec }: PlanRequest, layers: readonly LayerWork[], measured: MeasuredDevice): LayerWork[] {
  const block = timesAt(measured.block, work.meanTokens);
  const head = timesAt(measured.head, work.meanLabelTokens);
  const reference = layers[measured.blockLayer]!;
  return layers.map((layer, index): LayerWork => {
    const { kind } = spec.layers[index]!;
    // Blocks differ in their LoRA pairs and their window; layers below all that learn run forward only.
    if (kind === "block") return scaled(layer, reference, block);
    if (kind === "head") return { ...head, backward: layer.backward > 0 ? head.backward : 0, recompute: 0 };
    return { forward: 0, backward: 0, recompute: 0 };
  });
}

function scaled(layer: LayerWork, reference: LayerWork, times: Omit<TimePoint, "tokens">): LayerWork {
  const forward = (times.forward * layer.forward) / reference.forward;
  const backward = reference.backward > 0 ? (times.backward * layer.backward) / reference.backward : 0;
  return { forward, backward, recompute: layer.recompute > 0 ? forward : 0 };
}

/** Straight lines between measured points; beyond them the nearest line goes on, never below the nearest point's share. */
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
