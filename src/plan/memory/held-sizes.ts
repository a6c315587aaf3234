import { dtypeBytes, elementCount, type FloatDtype } from "../../common/dtype.ts";
import { BLOCK_SIZE, type FourBitSettings, NESTED_BLOCK_SIZE } from "../../common/quantization.ts";
import { blockVectors } from "../../models/block-vectors.ts";
import type { LayerSpec, LinearSpec, ModelSpec } from "../../models/spec.ts";

export type Quantization = { readonly method: "none" } | { readonly method: "8bit" } | FourBitSettings;

/** How the frozen weights lie in a worker's memory. */
export interface Holding {
  /** The embedding; other unquantised weights are held in the dtype they are computed with. */
  readonly dtype: FloatDtype;
  readonly quantization: Quantization;
  /** Paths of the linears that stay unquantised all the same (llm_int8_skip_modules). */
  readonly skipModules: readonly string[];
  /** GPUs: the blocks' products, forward and back, multiply e4m3 numbers (docs/decisions/compute/fp8.md). */
  readonly fp8: boolean;
}

const FLOAT32 = 4;

/** Whether a linear is held in few bits: those of the blocks are, but for the skipped; the head and the embedding never are. */
export function isQuantized(linear: LinearSpec, { quantization, skipModules }: Holding): boolean {
  if (quantization.method === "none") return false;
  return !skipModules.includes(linear.name);
}

/**
 * Bytes of a linear's weight [out, in]: unquantised in the dtype its products run in, quantised with the scales that
 * bitsandbytes keeps beside it (the tables of code values are constants, held once).
 */
export function linearWeightBytes(linear: LinearSpec, holding: Holding, computeDtype: FloatDtype): number {
  const elements = linear.in * linear.out;
  const { quantization } = holding;
  if (quantization.method === "none" || !isQuantized(linear, holding)) return elements * dtypeBytes(computeDtype);
  if (quantization.method === "8bit") return elements + linear.out * FLOAT32;
  const scales = Math.ceil(elements / BLOCK_SIZE);
  const state = quantization.doubleQuant ? scales + Math.ceil(scales / NESTED_BLOCK_SIZE) * FLOAT32 : scales * FLOAT32;
  return Math.ceil(elements / 2) + state;
}

/**
 * Bytes of one layer's frozen weights as the engine holds them, but for experts (expert-memory.ts): the embedding in the holding dtype,
 * norms, sinks and biases in float32, linears as above. A tied head counts in full: its products need their own layout, on whichever
 * device it is.
 */
export function layerWeightBytes(
  spec: ModelSpec,
  layer: LayerSpec,
  holding: Holding,
  computeDtype: FloatDtype,
): number {
  const { hidden, vocab } = spec.shape;
  switch (layer.kind) {
    case "embedding":
      return vocab * hidden * dtypeBytes(holding.dtype);
    case "head":
      return vocab * hidden * dtypeBytes(computeDtype);
    case "norm":
      return hidden * FLOAT32;
    case "block": {
      const vectors = blockVectors(spec, layer).reduce((sum, { shape }) => sum + elementCount(shape), 0);
      return layer.linears.reduce(
        (bytes, linear) =>
          bytes + linearWeightBytes(linear, holding, computeDtype) + (linear.bias ? linear.out * FLOAT32 : 0),
        (vectors + (layer.plainHeadNorms === true ? 2 * spec.shape.headDim : 0)) * FLOAT32,
      );
    }
  }
}

/** Weight, gradient and AdamW's two moments of a LoRA parameter, all float32. */
export const LORA_BYTES_PER_PARAMETER = 16;
/** A weight and two moments, copied once a step on their way out of an elastic run's rank. */
export const TOLD_BYTES_PER_PARAMETER = 12;
