import { fromFloat32 } from "../half.ts";

/** How GGUF holds a tensor's values: ggml's number for it, and blocks of so many values in so many bytes. */
export const GGUF_TYPES = {
  f32: { code: 0, values: 1, bytes: 4 },
  f16: { code: 1, values: 1, bytes: 2 },
  bf16: { code: 30, values: 1, bytes: 2 },
  /** 32 values as int8 with a scale in float16. */
  q8_0: { code: 8, values: 32, bytes: 34 },
  /** 32 values of FP4 E2M1 with an exponent (OCP MX). */
  mxfp4: { code: 39, values: 32, bytes: 17 },
} as const;

export type GgufType = keyof typeof GGUF_TYPES;
/** Types that values are rounded to; MXFP4 codes are only copied. */
export type RoundedType = Exclude<GgufType, "mxfp4">;

export function typeBytes(type: GgufType, values: number): number {
  const { values: block, bytes } = GGUF_TYPES[type];
  return (values / block) * bytes;
}

/** Whether rows of this width can be held so. */
export function fitsRows(type: GgufType, width: number): boolean {
  return width % GGUF_TYPES[type].values === 0;
}

/**
 * The bytes of values, each rounded once. q8_0 is ggml's quantize_row_q8_0_ref: a block's scale is its largest magnitude / 127, in float16,
 * and its values are divided by the scale in float32 and rounded, halves away from zero.
 */
export function encodeValues(values: Float32Array, type: RoundedType): Uint8Array {
  switch (type) {
    case "f32":
      return fromFloat32(values, "float32");
    case "f16":
      return fromFloat32(values, "float16");
    case "bf16":
      return fromFloat32(values, "bfloat16");
    case "q8_0":
      return q8(values);
  }
}

function q8(values: Float32Array): Uint8Array {
  const { values: size, bytes } = GGUF_TYPES.q8_0;
  const blocks = values.length / size;
  const scales = new Float32Array(blocks);
  const encoded = new Uint8Array(blocks * bytes);
  for (let block = 0; block < blocks; block++) {
    let most = 0;
    for (let i = block * size; i < (block + 1) * size; i++) most = Math.max(most, Math.abs(values[i]!));
    const scale = Math.fround(most / 127);
    const inverse = scale === 0 ? 0 : Math.fround(1 / scale);
    scales[block] = scale;
    const at = block * bytes + 2;
    for (let i = 0; i < size; i++) {
      const divided = Math.fround(values[block * size + i]! * inverse);
      encoded[at + i] = divided < 0 ? -Math.round(-divided) : Math.round(divided);
    }
  }
  const halves = fromFloat32(scales, "float16");
  for (let block = 0; block < blocks; block++) {
    encoded[block * bytes] = halves[2 * block]!;
    encoded[block * bytes + 1] = halves[2 * block + 1]!;
  }
  return encoded;
}

/** Bytes of a block as the OCP layout has them: code 2i in a byte's low half, 2i + 1 in its high half. */
const MX_CODES = 16;

/** Blocks of MXFP4 (codes [n, 16], exponents [n]) as ggml lays them: exponent, then code i in a byte's low half and i + 16 in its high half. */
export function encodeMxfp4(codes: Uint8Array, exponents: Uint8Array): Uint8Array {
  const { bytes } = GGUF_TYPES.mxfp4;
  const encoded = new Uint8Array(exponents.length * bytes);
  for (const [block, exponent] of exponents.entries()) {
    const at = block * bytes;
    encoded[at] = exponent;
    for (let i = 0; i < MX_CODES; i++) {
      const low = codes[block * MX_CODES + (i >> 1)]!;
      const high = codes[block * MX_CODES + (MX_CODES >> 1) + (i >> 1)]!;
      const half = i % 2 === 0 ? 0 : 4;
      encoded[at + 1 + i] = ((low >> half) & 15) | (((high >> half) & 15) << 4);
    }
  }
  return encoded;
}
