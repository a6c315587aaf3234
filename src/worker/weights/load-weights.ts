import type { FloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import { isQuantType, type QuantizationSettings, quantizedHold } from "../../common/quantization.ts";
import type { Engine } from "../../engine/index.ts";
import type { Checkpoint } from "../../formats/checkpoint.ts";
import { readPackedWeights } from "../../formats/quantized-state.ts";
import { readFloat32 } from "../../formats/safetensors.ts";
import { packedExperts, withExperts } from "../../formats/stacked-experts.ts";
import { modelStacks, storedAliases } from "../../models/experts.ts";
import { blockLinears } from "../../models/quantization.ts";
import type { ModelSpec } from "../../models/spec.ts";
import type { Prepare__Output } from "../../rpc/generated/pipelora/v1/Prepare.ts";
import type { Quantization__Output } from "../../rpc/generated/pipelora/v1/Quantization.ts";

/** A tensor that a segment of the engine needs. */
export interface WantedWeight {
  /** The engine's number. */
  readonly segment: number;
  readonly name: string;
}

/** Where a rank's shard is read from. */
export interface ShardSource {
  readonly checkpoint: Checkpoint;
  readonly spec: ModelSpec;
  readonly wanted: readonly WantedWeight[];
  /** By weight's name: makes a pair from the weight, and returns the weight after subtraction; null: nothing is subtracted. */
  readonly takes: ReadonlyMap<string, (weight: Float32Array) => Promise<Float32Array | null>>;
}

/** How many loads wait for the engine's thread. */
const AHEAD = 4;

/**
 * Reads this rank's tensors from the mapped checkpoint, one at a time, and quantises those that are to be quantised. Weights that the
 * checkpoint holds quantised are loaded as they are. There is never more than one tensor beside the shard. Resolves with the bytes read.
 */
export async function loadWeights(
  engine: Engine,
  { checkpoint: files, spec, wanted, takes }: ShardSource,
  request: Prepare__Output,
  signal: AbortSignal,
): Promise<number> {
  let bytes = 0;
  const dtype = request.holdDtype as FloatDtype;
  const settings = quantizationOf(request.quantization);
  const stacks = modelStacks(spec);
  const checkpoint = withExperts(files, stacks, storedAliases(spec));
  const { packed: packedMx } = packedExperts(files, stacks);
  const modules = new Set(request.quantization?.modules);
  const needed = new Set(wanted.map(({ name }) => name));
  const own = blockLinears(spec).filter(({ name }) => modules.has(name) && needed.has(`${name}.weight`));
  const packed =
    settings === null || spec.quantization === null
      ? new Map<string, never>()
      : await readPackedWeights(checkpoint, own, settings, new Set(), dtype);
  const quantized = new Set(own.map(({ name }) => `${name}.weight`));
  const counted = (name: string) => {
    const location = checkpoint.locate(name);
    bytes += location.bytes;
    return location;
  };
  const load = async ({ segment, name }: WantedWeight): Promise<void> => {
    const take = takes.get(name);
    if (take !== undefined) {
      const location = counted(name);
      const rest = await take(await readFloat32(location));
      const hold = settings !== null && quantized.has(name) ? quantizedHold(settings, dtype) : dtype;
      const shape = location.shape as readonly [number, number];
      if (rest !== null) return engine.loadValues(segment, name, shape, rest, hold);
    }
    const mx = packedMx.get(name.replace(/\.weight$/, ""));
    if (mx !== undefined && name.endsWith(".weight")) {
      bytes += sourceBytes(mx);
      return engine.loadPacked(segment, name, mx);
    }
    if (settings === null || !quantized.has(name)) return engine.loadWeight(segment, name, counted(name), dtype);
    const stored = packed.get(name.slice(0, -".weight".length));
    if (stored === undefined) {
      return engine.loadWeight(segment, name, counted(name), quantizedHold(settings, dtype));
    }
    bytes += sourceBytes(stored);
    return engine.loadPacked(segment, name, stored);
  };
  await fewAhead(wanted, load, signal).catch((cause: unknown) => {
    const { code, message } = cause as { code?: string; message: string };
    if (code !== "PL_QUANTIZATION_INVALID") throw cause;
    const hint =
      packed.size > 0
        ? "Quantise the 16-bit checkpoint again (`coordinator quantize`)."
        : "Repair the checkpoint, or leave this layer out with --llm-int8-skip-modules.";
    throw new PipeloraError("PL_QUANTIZATION_INVALID", message, { cause, hint });
  });
  return bytes;
}

/** Bytes of all tensors that a packed weight consists of. */
function sourceBytes(packed: object): number {
  const parts = Object.values(packed) as unknown[];
  return parts.reduce<number>((sum, part) => {
    const own = typeof part === "object" && part !== null && "bytes" in part ? part.bytes : 0;
    return sum + (typeof own === "number" ? own : 0);
  }, 0);
}

/**
 * Queues loads on the engine's thread in this order, always a few ahead. So the engine never waits for the next load, and few loads are still
 * queued when `signal` aborts. Rejects with the signal's reason, or with the first failure.
 */
async function fewAhead<T>(items: readonly T[], load: (item: T) => Promise<void>, signal: AbortSignal): Promise<void> {
  const queued: Promise<void>[] = [];
  try {
    for (const item of items) {
      signal.throwIfAborted();
      if (queued.length >= AHEAD) await queued.shift();
      const loaded = load(item);
      // Awaited one after another. Until then a failure must not count as unhandled.
      loaded.catch(() => {});
      queued.push(loaded);
    }
    for (const loaded of queued) await loaded;
    signal.throwIfAborted();
  } finally {
    await Promise.allSettled(queued);
  }
}

export function quantizationOf(message: Quantization__Output | null): QuantizationSettings | null {
  switch (message?.method) {
    case undefined:
    case "":
    case "none":
      return null;
    case "8bit":
      return { method: "8bit", threshold: message.int8Threshold };
    case "4bit":
      if (isQuantType(message.quantType)) {
        return { method: "4bit", quantType: message.quantType, doubleQuant: message.doubleQuant };
      }
  }
  const form = `${message!.method} ${message!.quantType}`.trim();
  throw new PipeloraError("PL_PROTOCOL_MISMATCH", `the coordinator asks for weights held as "${form}"`);
}
