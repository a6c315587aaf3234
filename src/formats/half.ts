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
