import type { Frame__Output } from "./generated/pipelora/v1/Frame.ts";
import { PROTOCOL_VERSION, protocol } from "./protocol.ts";

/**
 * Frames as they lie on the wire: the bytes of `message Frame`, put together around a payload that stays where it is.
 * protobuf's own writer would copy it, and knows no order in which the checksum can cover what follows it.
 */
export type FrameFields = Required<Pick<Frame__Output, "key" | "shape" | "dtype" | "totalBytes" | "sequence">> &
  Partial<Pick<Frame__Output, "beside">>;

export type Checksum = (bytes: Uint8Array) => number;

/** Bytes in front of a payload, in which sealFrame writes the other fields. */
export const FRAME_HEAD = 256;

const CHECKSUM_TAG = (8 << 3) | 5;
const PAYLOAD_TAG = (7 << 3) | 2;
const CHECKSUM_END = 5;

const { responseSerialize, responseDeserialize } = protocol.Tensors.service.Pull;

/**
 * Completes the frame whose payload lies in `slab` from FRAME_HEAD on. Returns the message's bytes, a part of `slab`.
 * Throws RangeError if the key and shape are longer than there is room for.
 */
export function sealFrame(slab: Buffer, payloadBytes: number, fields: FrameFields, checksum: Checksum): Buffer {
  const head = encodeFields(fields);
  const tail = payloadTag(payloadBytes);
  const start = FRAME_HEAD - CHECKSUM_END - head.length - tail.length;
  if (start < 0) throw new RangeError(`a frame's head has ${head.length} bytes: the key is too long`);
  slab[start] = CHECKSUM_TAG;
  head.copy(slab, start + CHECKSUM_END);
  slab.set(tail, start + CHECKSUM_END + head.length);
  const bytes = slab.subarray(start, FRAME_HEAD + payloadBytes);
  bytes.writeUInt32LE(checksum(bytes.subarray(CHECKSUM_END)), 1);
  return bytes;
}

/** The frame, its payload a part of `bytes`; null if it came corrupted. */
export function openFrame(bytes: Buffer, checksum: Checksum): Frame__Output | null {
  if (bytes.length < CHECKSUM_END || bytes[0] !== CHECKSUM_TAG) return null;
  if (bytes.readUInt32LE(1) !== checksum(bytes.subarray(CHECKSUM_END))) return null;
  try {
    return responseDeserialize(bytes);
  } catch {
    return null;
  }
}

/** A frame without payload and checksum: a tensor's description, which is all that shared memory needs. */
export function encodeFields(fields: FrameFields): Buffer {
  // Typed as what the service sends; here only its serialiser is wanted.
  return responseSerialize({ ...fields, protocol: PROTOCOL_VERSION } as Frame__Output);
}

export function decodeFields(bytes: Buffer): Frame__Output {
  return responseDeserialize(bytes);
}

function payloadTag(length: number): number[] {
  const tag = [PAYLOAD_TAG];
  let left = length;
  for (; left > 127; left >>>= 7) tag.push((left & 127) | 128);
  tag.push(left);
  return tag;
}
