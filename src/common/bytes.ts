/** Typed arrays and the bytes they lie in. Copies only where an offset is not aligned to the element. */
export function bytesOf(array: ArrayBufferView): Buffer {
  return Buffer.from(array.buffer, array.byteOffset, array.byteLength);
}

export function int32Of(bytes: Uint8Array): Int32Array {
  const { buffer, offset } = aligned(bytes, 4);
  return new Int32Array(buffer, offset, bytes.byteLength / 4);
}

export function float32Of(bytes: Uint8Array): Float32Array {
  const { buffer, offset } = aligned(bytes, 4);
  return new Float32Array(buffer, offset, bytes.byteLength / 4);
}

export function float64Of(bytes: Uint8Array): Float64Array {
  const { buffer, offset } = aligned(bytes, 8);
  return new Float64Array(buffer, offset, bytes.byteLength / 8);
}

function aligned(bytes: Uint8Array, elementBytes: number): { buffer: ArrayBufferLike; offset: number } {
  if (bytes.byteOffset % elementBytes === 0) return { buffer: bytes.buffer, offset: bytes.byteOffset };
  return { buffer: Uint8Array.from(bytes).buffer, offset: 0 };
}

/** "1.53 GiB", "312 MiB", "4.0 KiB", "17 B". */
export function formatBytes(bytes: number): string {
  const magnitude = Math.abs(bytes);
  for (const [unit, size, digits] of UNITS) {
    if (magnitude >= size) return `${(bytes / size).toFixed(digits)} ${unit}`;
  }
  return `${Math.round(bytes)} B`;
}

const UNITS = [
  ["TiB", 2 ** 40, 2],
  ["GiB", 2 ** 30, 2],
  ["MiB", 2 ** 20, 1],
  ["KiB", 2 ** 10, 1],
] as const;
