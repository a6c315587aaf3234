import type { Dtype } from "../common/dtype.ts";

/** bfloat16 bits -> float32: the upper half of the word. */
function fromBfloat16(bits: Uint16Array): Float32Array {
  const words = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) words[i] = bits[i]! << 16;
  return new Float32Array(words.buffer);
}

/** IEEE binary16 bits -> float32, exactly; subnormals, infinities and NaN included. */
function fromFloat16(bits: Uint16Array): Float32Array {
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i]!;
    const sign = word & 0x8000 ? -1 : 1;
    const exponent = (word >> 10) & 0x1f;
    const fraction = word & 0x3ff;
    if (exponent === 0) values[i] = sign * fraction * 2 ** -24;
    else if (exponent === 0x1f) values[i] = fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
    else values[i] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return values;
}

/** Little-endian elements of a floating dtype as float32 (a copy); null for other dtypes. */
export function toFloat32(bytes: Uint8Array, dtype: Dtype): Float32Array | null {
  const aligned = bytes.slice().buffer;
  switch (dtype) {
    case "float32":
      return new Float32Array(aligned);
    case "float64":
      return Float32Array.from(new Float64Array(aligned));
    case "bfloat16":
      return fromBfloat16(new Uint16Array(aligned));
    case "float16":
      return fromFloat16(new Uint16Array(aligned));
    default:
      return null;
  }
}

/** float32 -> bfloat16 bits, to nearest even. */
function toBfloat16(values: Float32Array): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const bits = new Uint16Array(words.length);
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    const nan = (word & 0x7fffffff) > 0x7f800000;
    bits[i] = nan ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return bits;
}

/** float32 -> IEEE binary16 bits, to nearest even; beyond its range infinity. */
function toFloat16(values: Float32Array): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const bits = new Uint16Array(words.length);
  const scratch = new Float32Array(1);
  const scratchWord = new Uint32Array(scratch.buffer);
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    const sign = (word >>> 16) & 0x8000;
    const magnitude = word & 0x7fffffff;
    if (magnitude > 0x7f800000) bits[i] = sign | 0x7e00;
    else if (magnitude >= 0x477ff000) bits[i] = sign | 0x7c00;
    else if (magnitude < 0x38800000) {
      // Adding 0.5 leaves a unit in the last place of 2^-24, that of subnormal halves.
      scratchWord[0] = magnitude;
      scratch[0] = scratch[0]! + 0.5;
      bits[i] = sign | (scratchWord[0]! - 0x3f000000);
    } else bits[i] = sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  }
  return bits;
}

/** The bytes of float32 values in another floating dtype, each rounded once. */
export function fromFloat32(values: Float32Array, dtype: "float32" | "bfloat16" | "float16"): Uint8Array {
  const bits = dtype === "bfloat16" ? toBfloat16(values) : dtype === "float16" ? toFloat16(values) : values;
  return new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength);
}
