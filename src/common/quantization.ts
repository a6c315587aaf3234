import type { Dtype } from "./dtype.ts";

/** dtypes that an unquantised weight may be held in. */
export type HoldDtype = Extract<Dtype, "float32" | "bfloat16" | "float16">;

/** How a base is quantised, under BitsAndBytesConfig's meanings. */
export type QuantizationSettings = FourBitSettings | EightBitSettings;

export interface FourBitSettings {
  readonly method: "4bit";
  readonly quantType: "nf4" | "fp4";
  readonly doubleQuant: boolean;
}

/** LLM.int8() */
export interface EightBitSettings {
  readonly method: "8bit";
  /** Columns of the input with a magnitude of at least this stay in floating point; 0: none. */
  readonly threshold: number;
}

/** How one weight is held. */
export type QuantizedHold = FourBitHold | EightBitHold;

/** NF4 or FP4 as bitsandbytes holds them (QLoRA). */
export interface FourBitHold extends FourBitSettings {
  /** Values are rounded to it before they are quantised, and when they are dequantised. */
  readonly dtype: HoldDtype;
  /** Elements that share a scale: a power of two from 32 to 4096. */
  readonly blockSize: number;
}

export interface EightBitHold extends EightBitSettings {
  /** Values are rounded to it before they are quantised. */
  readonly dtype: HoldDtype;
}

/**
 * A weight [out, in] that is quantised already, in bitsandbytes' serialised form. T: where its arrays lie, a file
 * (TensorSource) or memory (Uint8Array).
 */
export type PackedWeight<T> = PackedFourBit<T> | PackedEightBit<T>;

export interface PackedFourBit<T> {
  readonly hold: FourBitHold;
  readonly shape: readonly [number, number];
  /** uint8, two elements a byte, the even one in the high half. */
  readonly codes: T;
  /** Scale of each block: float32, or uint8 codes with double quantisation. */
  readonly absmax: T;
  /** float32 [16] */
  readonly quantMap: T;
  /** With double quantisation: float32 scales of 256 absmax codes each, float32 [256], and the mean that was taken off. */
  readonly nested: { readonly absmax: T; readonly quantMap: T; readonly offset: number } | null;
}

export interface PackedEightBit<T> {
  readonly hold: EightBitHold;
  readonly shape: readonly [number, number];
  /** int8 [out, in] */
  readonly codes: T;
  /** float32 [out] */
  readonly scb: T;
}

/** Elements that share a scale where a weight is quantised here. */
export const BLOCK_SIZE = 64;

/** The form of a weight that `settings` quantise and `dtype` is the model's dtype of. */
export function quantizedHold(settings: QuantizationSettings, dtype: HoldDtype): QuantizedHold {
  return settings.method === "4bit" ? { ...settings, dtype, blockSize: BLOCK_SIZE } : { ...settings, dtype };
}
