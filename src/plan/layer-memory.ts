import { dtypeBytes } from "../common/dtype.ts";
import type { LoraTarget } from "../models/lora-targets.ts";
import type { BlockLayer, LayerSpec, LinearSpec, ModelShape } from "../models/spec.ts";
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
/** Bytes of float32 logits that are alive at a time: the head works through its label tokens in chunks of this size. */
const LOGITS_BYTES = 2 ** 28;
/** The driver's context and cuBLASLt's workspace. A CPU worker's budget is for what it computes with, not for the interpreter. */
const CONTEXT_BYTES = { cpu: 0, cuda: 640 * 2 ** 20 } as const;

export function contextBytes(kind: Device["kind"]): number {
  return CONTEXT_BYTES[kind];
}

/**
 * What every layer takes, in model order. T tokens of a micro-batch, N label tokens, D hidden, H heads, K kv heads, E head
 * width, F feed-forward width, V vocabulary, R sum of LoRA ranks of a block, a bytes of the compute dtype. Bytes a token:
 *
 * - saved by a block: its input (a D) and LoRA's inner vectors (4 R); without checkpointing also q, k, v (a (H + 2K) E),
 *   attention's output (a H E) and log-sum-exp (4 H), the residual after attention (a D), gate and up (2 a F);
 * - a block's own work: the gradient of its output and SwiGLU's activation (a (D + F)), LoRA's inner gradients (4 R), or, where
 *   attention's backward takes more, that; a block that recomputes has all of the above for itself for a while; quantised weights
 *   add codes of the input, or room to expand into (see quantizedWork);
 * - a block below everything that learns saves nothing and works on a (2 D + 3 F);
 * - the final norm saves its input (a D), the head the gradient of its input (a D a label token);
 * - the head's own work: its input or its gradient (a D), and a chunk of n label tokens with n V 4 <= 2^27: their logits in
 *   float32, the gradient of those in the compute dtype if that is another, and their input (a D).
 */
export function layerMemory(request: PlanRequest): LayerMemory[] {
  const { spec, lora } = request;
  const pairs = pairsByLayer(lora, spec.layers.length);
  const lowest = lowestTrainable(lora);
  return spec.layers.map((layer, index) => {
    const own = pairs[index]!;
    const base: LayerMemory = {
      weights: layerWeightBytes(spec, layer, request.holding, request.computeDtype),
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
      const chunk = Math.max(1, Math.min(Math.floor(LOGITS_BYTES / (FLOAT32 * shape.vocab)), work.labelTokens));
      const logits = FLOAT32 * shape.vocab + (float === FLOAT32 ? 0 : float * shape.vocab);
      return { saved, savedFull: saved, workspace: row * work.tokens + chunk * (logits + row + 2 * FLOAT32 * ranks) };
    }
    case "block": {
      const saved = learns ? (row + FLOAT32 * ranks) * work.tokens : 0;
      const recompute = learns ? keptBeside(shape, float) * work.tokens : 0;
      return {
        saved,
        savedFull: saved + recompute,
        workspace: blockWork(shape, float, ranks, layer, learns) * work.tokens + quantizedWork(request, layer, float),
        recompute,
        cache: 2 * shape.kvHeads * shape.headDim * float * work.cacheTokens,
      };
    }
  }
}

/** Beside its layers a segment has an output and a gradient on their way (2 a D a token), indices of the tokens, and rotary tables (4 E a token). */
export function boundaryBytes(request: PlanRequest): number {
  const { shape } = request.spec;
  return (2 * dtypeBytes(request.computeDtype) * shape.hidden + FLOAT32 * (shape.headDim + 4)) * request.work.tokens;
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

function blockWork(
  { hidden, heads, kvHeads, headDim, ffn }: ModelShape,
  float: number,
  ranks: number,
  { qNorm }: BlockLayer,
  learns: boolean,
): number {
  if (!learns) return float * Math.max(2 * hidden + 3 * ffn, hidden + (2 * heads + 2 * kvHeads) * headDim);
  const mlp = float * (hidden + ffn) + FLOAT32 * ranks;
  // By then gate, up and the residual are gone: the gradients of attention's output and of q, k, v; q and k anew after their
  // norms; queries' gradient in float32 where products are in 16 bits.
  const turned = qNorm === null ? 0 : (heads + kvHeads) * headDim;
  const gradients = hidden + (2 * heads + 2 * kvHeads) * headDim + turned;
  const sums = float === FLOAT32 ? 0 : FLOAT32 * heads * headDim;
  return Math.max(mlp, float * (gradients - 2 * ffn - hidden) + sums + FLOAT32 * ranks);
}

/** What products of quantised weights take: in 8 bits the input's codes and scales, on a GPU in 4 bits two weights in the compute dtype. */
function quantizedWork({ holding, work, devices }: PlanRequest, block: BlockLayer, float: number): number {
  const packed = block.linears.filter((linear) => isQuantized(linear, holding));
  const most = (measure: (linear: LinearSpec) => number) => Math.max(0, ...packed.map(measure));
  const codes = holding.quantization.method === "8bit" ? most((linear) => linear.in * (work.tokens + 5)) : 0;
  const expands = devices.some(({ kind }) => kind === "cuda");
  return codes + (expands ? 2 * float * most((linear) => linear.in * linear.out) : 0);
}
