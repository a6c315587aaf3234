/** Element types, under the names that torch and config.json use. */
export const DTYPE_BITS = {
  float64: 64,
  float32: 32,
  float16: 16,
  bfloat16: 16,
  int64: 64,
  int32: 32,
  int16: 16,
  int8: 8,
  float8_e4m3fn: 8,
  uint8: 8,
  bool: 8,
} as const;

export type Dtype = keyof typeof DTYPE_BITS;

/** dtypes that weights are held in and products computed in. */
export const FLOAT_DTYPES = ["float32", "float16", "bfloat16"] as const satisfies readonly Dtype[];
export type FloatDtype = (typeof FLOAT_DTYPES)[number];

/** What activations and gradients between stages may be rounded to on their way. float8_e4m3fn: with one float32 scale a token. */
export const LINK_DTYPES = ["bfloat16", "float8_e4m3fn"] as const satisfies readonly Dtype[];
export type LinkDtype = (typeof LINK_DTYPES)[number];

/** Columns of one byte behind a token's numbers in float8_e4m3fn: its scale (native/include/pipelora/core/e4m3.h). */
export const SCALE_COLUMNS = 4;

export function isFloatDtype(name: string): name is FloatDtype {
  return (FLOAT_DTYPES as readonly string[]).includes(name);
}

export function isDtype(name: string): name is Dtype {
  return Object.hasOwn(DTYPE_BITS, name);
}

/** Bytes of one element. */
export function dtypeBytes(dtype: Dtype): number {
  return DTYPE_BITS[dtype] / 8;
}

export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}
