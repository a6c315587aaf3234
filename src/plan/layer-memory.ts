import { dtypeBytes } from "../common/dtype.ts";
import type { LoraTarget } from "../models/lora-targets.ts";
import type { BlockLayer, LayerSpec, ModelShape } from "../models/spec.ts";
import type { Device } from "./devices.ts";
import { isQuantized, LORA_BYTES_PER_PARAMETER, layerWeightBytes } from "./held-sizes.ts";
import type { PlanRequest } from "./request.ts";

/** Bytes that one layer takes on the device that holds it. */
export interface LayerMemory {
  readonly weights: number;
  /** LoRA weights, gradients and optimizer state. */
  readonly lora: number;
  /** Kept from forward to backward, a micro-batch in flight: checkpointed, and with everything kept. */
  readonly saved: number;
  readonly savedFull: number;
  /** Alive while the layer itself runs; a device needs the largest of its layers'. */
  readonly workspace: number;
  /** Added to `workspace` of a block that recomputes. */
  readonly recompute: number;
  readonly cache: number;
}

const FLOAT32 = 4;
/** Tokens whose logits are alive at a time. */
const HEAD_CHUNK = 1024;
/** The driver's context and cuBLASLt's workspace. A CPU worker's budget is for what it computes with, not for the interpreter. */
const CONTEXT_BYTES = { cpu: 0, cuda: 640 * 2 ** 20 } as const;

export function contextBytes(kind: Device["kind"]): number {
  return CONTEXT_BYTES[kind];
}

/**
 * What every layer takes, in model order. T tokens of a micro-batch, N label tokens, D hidden, H heads, K kv heads, E head
 * width, F feed-forward width, V vocabulary, R sum of LoRA ranks of a block, a bytes of the compute dtype:
 *
 * - a block keeps its input (a D); without checkpointing also q, k, v (a (H + 2K) E), attention's output (a H E) and
 *   log-sum-exp (4 H), the residual after attention (a D), gate and up (2 a F), LoRA's inner vectors (4 R), a token;
 * - a block's own work: two normed inputs, the gradients of input and output (4 a D), of q, k, v and attention (a (2H + 2K) E),
 *   of gate and up with the activation (3 a F), LoRA's inner gradients (4 R), a token; with quantised weights two of its largest
 *   linears in the compute dtype;
 * - the final norm keeps its input (a D); the head keeps the gradient of its input (a D a label token);
 * - the head works on at most 1024 label tokens at a time: their logits in float32 (4 V) and two rows of input (2 a D);
 * - tokens and rotary tables are part of every segment (see boundaryBytes).
 */
export function layerMemory(request: PlanRequest): LayerMemory[] {
  const { spec, lora } = request;
  const pairs = pairsByLayer(lora, spec.layers.length);
  const lowest = lowestTrainable(lora);
  return spec.layers.map((layer, index) => {
    const own = pairs[index]!;
    const base: LayerMemory = {
      weights: layerWeightBytes(spec, layer, request.holding),
      lora: own.reduce((sum, { r, in: input, out }) => sum + r * (input + out), 0) * LORA_BYTES_PER_PARAMETER,
      saved: 0,
      savedFull: 0,
      workspace: 0,
      recompute: 0,
      cache: 0,
    };
    const ranks = own.reduce((sum, { r }) => sum + r, 0);
    return { ...base, ...transient(request, layer, ranks, index >= lowest) };
  });
}

/** What depends on tokens. `learns`: the layer or one before it has a LoRA pair, so it runs backward. */
function transient(request: PlanRequest, layer: LayerSpec, ranks: number, learns: boolean): Partial<LayerMemory> {
  const { work, computeDtype } = request;
  const { shape } = request.spec;
  const float = dtypeBytes(computeDtype);
  const row = float * shape.hidden;
  switch (layer.kind) {
    case "embedding":
      return {};
    case "norm": {
      const saved = learns ? row * work.tokens : 0;
      return { saved, savedFull: saved, workspace: row * work.tokens };
    }
    case "head": {
      const saved = learns ? row * work.labelTokens : 0;
      const chunk = Math.min(HEAD_CHUNK, work.labelTokens);
      return { saved, savedFull: saved, workspace: chunk * (FLOAT32 * shape.vocab + 2 * row) };
    }
    case "block": {
      const saved = learns ? row * work.tokens : 0;
      const recompute = learns ? (keptBeside(shape, float) + FLOAT32 * ranks) * work.tokens : 0;
      return {
        saved,
        savedFull: saved + recompute,
        workspace: (blockWork(shape, float) + FLOAT32 * ranks) * work.tokens + dequantized(request, layer, float),
        recompute,
        cache: 2 * shape.kvHeads * shape.headDim * float * work.cacheTokens,
      };
    }
  }
}

/** A segment's input or output waiting for its link or its turn (a D a token), token ids, and rotary tables (8 E / 2 a token). */
export function boundaryBytes(request: PlanRequest): number {
  const { shape } = request.spec;
  return (2 * dtypeBytes(request.computeDtype) * shape.hidden + 4 * shape.headDim + 3 * 4) * request.work.tokens;
}

/** Index of the lowest layer with a LoRA pair; Infinity when nothing learns. */
export function lowestTrainable(lora: readonly LoraTarget[]): number {
  return lora.reduce((lowest, { layer }) => Math.min(lowest, layer), Number.POSITIVE_INFINITY);
}

export function pairsByLayer(lora: readonly LoraTarget[], layers: number): LoraTarget[][] {
  const pairs: LoraTarget[][] = Array.from({ length: layers }, () => []);
  for (const target of lora) pairs[target.layer]!.push(target);
  return pairs;
}

function keptBeside({ hidden, heads, kvHeads, headDim, ffn }: ModelShape, float: number): number {
  return float * ((2 * heads + 2 * kvHeads) * headDim + hidden + 2 * ffn) + FLOAT32 * heads;
}

function blockWork({ hidden, heads, kvHeads, headDim, ffn }: ModelShape, float: number): number {
  return float * (4 * hidden + (2 * heads + 2 * kvHeads) * headDim + 3 * ffn);
}

function dequantized({ holding }: PlanRequest, block: BlockLayer, float: number): number {
  const packed = block.linears.filter((linear) => isQuantized(linear, holding));
  return 2 * float * Math.max(0, ...packed.map((linear) => linear.in * linear.out));
}
