import type { FloatDtype } from "./dtype.ts";

/** The 4-bit codes of bitsandbytes. */
export const QUANT_TYPES = ["fp4", "nf4"] as const;
export type QuantType = (typeof QUANT_TYPES)[number];

export function isQuantType(name: string): name is QuantType {
  return (QUANT_TYPES as readonly string[]).includes(name);
}

/** Elements that share a scale where a weight is quantised here. */
export const BLOCK_SIZE = 64;
/** Elements that may share one in a checkpoint: a power of two. */
export const BLOCK_SIZES = { least: 32, most: 4096 } as const;
/** Scales that share one of the second level (double quantisation). */
export const NESTED_BLOCK_SIZE = 256;
/** Values of the 8-bit code that scales are held in. */
export const NESTED_CODES = 256;
/** transformers' default of llm_int8_threshold. */
export const INT8_THRESHOLD = 6;

/** How a base is quantised, under BitsAndBytesConfig's meanings. */
export type QuantizationSettings = FourBitSettings | EightBitSettings;

export interface FourBitSettings {
  readonly method: "4bit";
  readonly quantType: QuantType;
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
  readonly dtype: FloatDtype;
  /** Elements that share a scale: a power of two from 32 to 4096. */
  readonly blockSize: number;
}

export interface EightBitHold extends EightBitSettings {
  /** Values are rounded to it before they are quantised. */
  readonly dtype: FloatDtype;
}

/**
 * A weight [out, in] that is quantised already, in bitsandbytes' serialised form. T: where its arrays lie, a file
 * (TensorSource) or memory (Uint8Array).
 */
export type PackedWeight<T> = PackedFourBit<T> | PackedEightBit<T>;

/** MXFP4 as a checkpoint holds it (OCP Microscaling Formats): kept so. */
export interface PackedMx<T> {
  readonly hold: { readonly method: "mxfp4"; readonly dtype: FloatDtype };
  readonly shape: readonly [number, number];
  /** uint8, two values a byte, the even one in the low half. */
  readonly codes: T;
  /** uint8, a biased exponent for 32 values of a row. */
  readonly scales: T;
}
/** Names of the tensors that hold a parameter of all experts so: codes, and scales. */
export const mxNames = (parameter: string) =>
  ({ blocks: `${parameter}_blocks`, scales: `${parameter}_scales` }) as const;
/** Values that share a scale. */
export const MX_BLOCK = 32;

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

/** The form in which a weight is held under these quantisation settings. `dtype`: the model's dtype. */
export function quantizedHold(settings: QuantizationSettings, dtype: FloatDtype): QuantizedHold {
  return settings.method === "4bit" ? { ...settings, dtype, blockSize: BLOCK_SIZE } : { ...settings, dtype };
}
