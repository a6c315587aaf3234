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
    copyToPlace: async (place) => {
      const copied = engine.readTo(tensor, place);
      tensor.free();
      await copied;
    },
  };
}

/** A message whose content does not matter, from whatever memory a link moves. */
export function anyContent(bytes: number): OutgoingTensor {
  return {
    shape: [bytes / 4],
    dtype: "float32",
    byteLength: bytes,
    copyTo: async (pieces) => {
      for (const piece of pieces) piece.fill(0);
    },
    copyToPlace: async () => {},
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
    const { place, pieces, shape, dtype } = tensor;
    return await (place === undefined ? engine.write(pieces, shape, dtype) : engine.writeFrom(place, shape, dtype));
  } finally {
    tensor.release();
  }
}
