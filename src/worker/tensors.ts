import type { Dtype, LinkDtype } from "../common/dtype.ts";
import type { DeviceTensor, Engine } from "../engine/index.ts";
import type { IncomingTensor, OutgoingTensor } from "../links/link.ts";

/** What a rank's tensors are on the way between stages. */
export interface Boundary {
  readonly engine: Engine;
  /** What they are rounded to for a peer; null: they go as they are. */
  readonly linkDtype: LinkDtype | null;
}

/** A device tensor on its way to a peer, as links carry it; freed once it has been copied. Errors: the engine's. */
export async function fromDevice({ engine, linkDtype }: Boundary, whole: DeviceTensor): Promise<OutgoingTensor> {
  const tensor = linkDtype === null ? whole : await engine.encode(whole, linkDtype);
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

/** Puts a tensor that came into device memory, in the compute dtype, and gives its room back to the link. */
export async function toDevice({ engine, linkDtype }: Boundary, tensor: IncomingTensor): Promise<DeviceTensor> {
  const { place, pieces, shape, dtype } = tensor;
  const written = place === undefined ? engine.write(pieces, shape, dtype) : engine.writeFrom(place, shape, dtype);
  const came = await written.finally(() => tensor.release());
  return linkDtype === null ? came : engine.decode(came);
}
