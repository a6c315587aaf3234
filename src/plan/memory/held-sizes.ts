import { dtypeBytes, elementCount, type FloatDtype } from "../../common/dtype.ts";
import { BLOCK_SIZE, type FourBitSettings, NESTED_BLOCK_SIZE } from "../../common/quantization.ts";
import { blockVectors } from "../../models/block-vectors.ts";
import type { LayerSpec, LinearSpec, ModelSpec } from "../../models/spec.ts";

export type Quantization = { readonly method: "none" } | { readonly method: "8bit" } | FourBitSettings;

/** How the frozen weights lie in a worker's memory. */
export interface Holding {
  /** The embedding's dtype. Other unquantised weights are held in the dtype they are computed with. */
  readonly dtype: FloatDtype;
  readonly quantization: Quantization;
  /** Paths of the linears that stay unquantised (llm_int8_skip_modules). */
  readonly skipModules: readonly string[];
  /** On GPUs, whether the blocks' products multiply e4m3 numbers in both passes (docs/decisions/compute/fp8.md). */
  readonly fp8: boolean;
}

const FLOAT32 = 4;

/** Whether a linear is held quantised: linears of blocks are, except the skipped ones; the head and the embedding never are. */
export function isQuantized(linear: LinearSpec, { quantization, skipModules }: Holding): boolean {
  if (quantization.method === "none") return false;
  return !skipModules.includes(linear.name);
}

/**
 * Bytes of a linear's weight [out, in]: unquantised in the dtype of its products, or quantised with the scales that bitsandbytes keeps. The
 * tables of code values are constants and are held once.
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
 * Bytes of one layer's frozen weights as the engine holds them, without experts (expert-memory.ts). The embedding has the holding dtype; norms,
 * sinks and biases are in float32; linears are as above. A tied head counts in full, because its products need a layout of their own.
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

/** A LoRA parameter's weight, gradient and two moments of AdamW, in float32. */
export const LORA_BYTES_PER_PARAMETER = 16;
/** A weight and two moments, which an elastic run's rank copies once a step to send them. */
export const TOLD_BYTES_PER_PARAMETER = 12;
