import type { Dtype } from "../common/dtype.ts";
import type { DeviceTensor, Engine } from "../engine/index.ts";
import type { IncomingTensor, OutgoingTensor } from "../links/link.ts";

/** A device tensor on its way to a peer; freed once it has been copied. */
export function fromDevice(engine: Engine, tensor: DeviceTensor): OutgoingTensor {
  return {
    shape: tensor.shape,
    dtype: tensor.dtype,
    byteLength: tensor.bytes,
    copyTo: async (pieces) => {
      const copied = engine.readInto(tensor, pieces);
      // Queued behind the copy.
      tensor.free();
      await copied;
    },
  };
}

export function fromHost(bytes: Uint8Array, shape: readonly number[], dtype: Dtype): OutgoingTensor {
  return {
    shape,
    dtype,
    byteLength: bytes.length,
    copyTo: async (pieces) => {
      let offset = 0;
      for (const piece of pieces) {
        piece.set(bytes.subarray(offset, offset + piece.length));
        offset += piece.length;
      }
    },
  };
}

/** Puts a tensor that came into device memory and gives its room back to the link. */
export async function toDevice(engine: Engine, tensor: IncomingTensor): Promise<DeviceTensor> {
  try {
    return await engine.write(tensor.pieces, tensor.shape, tensor.dtype);
  } finally {
    tensor.release();
  }
}
