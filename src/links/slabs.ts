import { FRAME_HEAD } from "../rpc/tensor-frame.ts";

/** Payload of one frame: large enough to amortise its cost, small enough to interleave and to stay in a cache. */
export const FRAME_BYTES = 1 << 20;
/** Smaller frames are allocated, which is as fast for them. */
const POOLED_FROM = 64 << 10;
const KEPT = 64;

/** Host memory for frames, used again and again. A slab holds a frame's header, then its payload. */
export class Slabs {
  readonly #free: Buffer[] = [];

  /** Slabs whose payloads hold `bytes` in order; one for none. */
  take(bytes: number): { slab: Buffer; payload: Buffer }[] {
    const taken = [];
    for (let left = bytes; taken.length === 0 || left > 0; left -= FRAME_BYTES) {
      const size = Math.min(left, FRAME_BYTES);
      const slab =
        size < POOLED_FROM
          ? Buffer.allocUnsafe(FRAME_HEAD + size)
          : (this.#free.pop() ?? Buffer.allocUnsafeSlow(FRAME_HEAD + FRAME_BYTES));
      taken.push({ slab, payload: slab.subarray(FRAME_HEAD, FRAME_HEAD + size) });
    }
    return taken;
  }

  give(slab: Buffer): void {
    if (slab.length === FRAME_HEAD + FRAME_BYTES && this.#free.length < KEPT) this.#free.push(slab);
  }
}
