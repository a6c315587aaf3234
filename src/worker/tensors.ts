import type { Dtype, LinkDtype } from "../common/dtype.ts";
import type { DeviceTensor, Engine } from "../engine/index.ts";
import type { IncomingTensor, OutgoingTensor } from "../links/link.ts";

/** How a rank's tensors go from stage to stage. */
export interface Boundary {
  readonly engine: Engine;
  /** The dtype to which they are rounded for a peer; null: they are sent unrounded. */
  readonly linkDtype: LinkDtype | null;
}

/** Makes a device tensor ready for a link, rounded if links round. It is freed after it has been copied. Errors: those of the engine. */
export async function fromDevice({ engine, linkDtype }: Boundary, whole: DeviceTensor): Promise<OutgoingTensor> {
  const tensor = linkDtype === null ? whole : await engine.encode(whole, linkDtype);
  return {
    shape: tensor.shape,
    dtype: tensor.dtype,
    byteLength: tensor.bytes,
    copyTo: async (pieces) => {
      const copied = engine.readInto(tensor, pieces);
      // The engine frees it after the copy.
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

/** A message with arbitrary content, for measuring a link. */
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

/** Puts a received tensor into device memory, in the compute dtype, and frees its room in the link. */
export async function toDevice({ engine, linkDtype }: Boundary, tensor: IncomingTensor): Promise<DeviceTensor> {
  const { place, pieces, shape, dtype } = tensor;
  const written = place === undefined ? engine.write(pieces, shape, dtype) : engine.writeFrom(place, shape, dtype);
  const came = await written.finally(() => tensor.release());
  return linkDtype === null ? came : engine.decode(came);
}
