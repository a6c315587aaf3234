import type { FloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import { type QuantizationSettings, quantizedHold } from "../../common/quantization.ts";
import type { NativeAddon } from "../../engine/index.ts";
import type { PairValues } from "../../formats/lora-init.ts";
import { packedOf } from "../../formats/quantized-state.ts";
import type { LoraPair__Output } from "../../rpc/generated/pipelora/v1/LoraPair.ts";

/** An initialisation from the base's own weights. */
export interface BaseInit {
  readonly kind: "pissa" | "olora" | "loftq";
  /** The N of pissa_niter_N; -1: an exact decomposition. */
  readonly iterations: number;
}

export function baseInit(kind: string): BaseInit | null {
  const iterations = /^pissa_niter_(\d+)$/.exec(kind)?.[1];
  if (iterations !== undefined) return { kind: "pissa", iterations: Number(iterations) };
  return kind === "pissa" || kind === "olora" || kind === "loftq" ? { kind, iterations: -1 } : null;
}

/** A pair made from a weight, and the weight after subtraction; null: nothing is subtracted. */
export interface Taken extends PairValues {
  readonly rest: Float32Array | null;
}

interface Making {
  readonly addon: NativeAddon;
  readonly seed: number;
  readonly threads: number;
  /** How the weight will be held: LoftQ needs this. */
  readonly quantization: QuantizationSettings | null;
  readonly dtype: FloatDtype;
}

/**
 * Makes a pair from a weight [out, in], as peft 0.21 does. PiSSA (Meng et al. 2024): the largest singular values, divided by the scale, their
 * square roots in A and B. OLoRA (Büyükakyüz 2024): the first columns and rows of a QR decomposition. Both subtract the pair's product from the
 * weight. LoftQ (Li et al. 2023), one iteration as in replace_lora_weights_loftq: the largest singular values of the quantisation error in 4
 * bits; the base stays as it is. Every number depends only on the weight and the seed. Errors: PL_CONFIG_INVALID for a rank larger than the
 * weight's.
 */
export async function takeFrom(
  weight: Float32Array,
  { module, r, scale, in: input, out }: Pick<LoraPair__Output, "module" | "r" | "scale" | "in" | "out">,
  { kind, iterations }: BaseInit,
  { addon, seed, threads, quantization, dtype }: Making,
): Promise<Taken> {
  const shape = [out, input] as const;
  if (r > Math.min(out, input)) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `init_lora_weights ${kind}: ${module} [${out}, ${input}] has no rank of ${r}.`,
      {
        hint: "Lower lora_r, or set rank_pattern for it.",
      },
    );
  }
  const lost = kind === "loftq" ? await quantisationError() : weight;
  const method = kind === "olora" ? "qr" : "svd";
  const { left, values, right } = await addon.lowRank(lost, shape, r, method, iterations, seed, threads);
  const share = (k: number) => (kind === "olora" ? 1 : Math.sqrt(kind === "pissa" ? values[k]! / scale : values[k]!));
  const a = right.map((value, at) => value * share(Math.floor(at / input)));
  const b = left.map((value, at) => value * share(at % r));
  if (kind === "loftq") return { a, b, rest: null };
  const rest = Float32Array.from(weight);
  const bytes = new Uint8Array(rest.buffer);
  await addon.addLowRank(bytes, "float32", out, input, a, b, -scale);
  return { a, b, rest };

  async function quantisationError(): Promise<Float32Array> {
    const hold = quantizedHold(quantization!, dtype);
    const bytes = new Uint8Array(weight.buffer, weight.byteOffset, weight.byteLength);
    const tensors = await addon.quantize(bytes, "float32", shape, hold, threads);
    const held = await addon.dequantize(packedOf(tensors, hold, [out, input]), "float32", threads);
    const values = new Float32Array(held.buffer, held.byteOffset, weight.length);
    return weight.map((value, at) => value - values[at]!);
  }
}
