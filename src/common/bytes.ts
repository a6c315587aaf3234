/** Typed arrays and the bytes they lie in. Copies only where an offset is not aligned to the element. */
export function bytesOf(array: ArrayBufferView): Buffer {
  return Buffer.from(array.buffer, array.byteOffset, array.byteLength);
}

export function int32Of(bytes: Uint8Array): Int32Array {
  const { buffer, offset } = aligned(bytes);
  return new Int32Array(buffer, offset, bytes.byteLength / 4);
}

export function float32Of(bytes: Uint8Array): Float32Array {
  const { buffer, offset } = aligned(bytes);
  return new Float32Array(buffer, offset, bytes.byteLength / 4);
}

function aligned(bytes: Uint8Array): { buffer: ArrayBufferLike; offset: number } {
  if (bytes.byteOffset % 4 === 0) return { buffer: bytes.buffer, offset: bytes.byteOffset };
  return { buffer: Uint8Array.from(bytes).buffer, offset: 0 };
}

/** "1.50 GiB" */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return unit === 0 ? `${bytes} B` : `${value.toFixed(2)} ${units[unit]}`;
}
