import { PipeloraError } from "../common/errors.ts";
import type { PullRequest__Output } from "../rpc/generated/pipelora/v1/PullRequest.ts";
import { type Checksum, type FrameFields, sealFrame } from "../rpc/tensor-frame.ts";
import type { FrameSink } from "../rpc/tensor-stream.ts";
import { linkName, type OutgoingTensor, type SendingEnd } from "./link.ts";
import { NCCL_HINT, type NcclSendingCarrier } from "./nccl-carrier.ts";
import { type EndOptions, WINDOW_BYTES } from "./options.ts";
import { Slabs } from "./slabs.ts";
import { Waiters } from "./waiters.ts";
import { Watch } from "./watch.ts";

interface Sealed {
  readonly bytes: Buffer;
  readonly slab: Buffer;
}

/** Makes the carrier of device tensors beside the stream. The carrier reports why it failed. */
export type MakeCarrier<Carrier> = (onFailed: (reason: string) => void) => Carrier;

/**
 * Sends tensors in frames over the stream that the receiver opened, and over its successor if that one breaks. Frames are kept until the
 * receiver confirms them; the receiver's grants bound their memory. With a carrier, frames only announce tensors in device memory.
 */
export class GrpcSender implements SendingEnd {
  readonly #options: EndOptions;
  readonly #checksum: Checksum;
  readonly #slabs = new Slabs();
  readonly #watch: Watch;
  readonly #carrier: NcclSendingCarrier | null;
  /** Frames that the receiver has not confirmed, and the sequence number of the first. */
  readonly #kept: Sealed[] = [];
  #first = 0;
  /** Sequence number of the next to be written. */
  #next = 0;
  #begunBytes = 0;
  #grantedBytes: number;
  #stream: FrameSink | null = null;
  #writing = false;
  readonly #waiters = new Waiters();
  #failure: PipeloraError | null = null;

  constructor(options: EndOptions, checksum: Checksum, makeCarrier: MakeCarrier<NcclSendingCarrier> | null = null) {
    this.#options = options;
    this.#checksum = checksum;
    this.#carrier = makeCarrier?.((reason) => this.#carrierFailed(reason)) ?? null;
    this.#grantedBytes = options.windowBytes ?? WINDOW_BYTES;
    this.#watch = new Watch(
      options.timeoutMs,
      () => this.#kept.length > 0 || this.#waiters.some,
      () => this.#fail(new PipeloraError("PL_LINK_FAILED", this.#stall(), { hint: STALL_HINT })),
    );
  }

  /** When it can carry device tensors; at once without a carrier. Errors: PL_LINK_FAILED. */
  async opened(): Promise<void> {
    await this.#carrier?.opened.catch((error: unknown) => {
      throw this.#failure ?? error;
    });
  }

  /** Bytes in host memory that the receiver has not confirmed. */
  get heldBytes(): number {
    return this.#kept.reduce((sum, { slab }) => sum + slab.length, 0);
  }

  room(): Promise<void> | null {
    if (this.#failure === null && this.#begunBytes < this.#grantedBytes) return null;
    if (this.#failure !== null) return Promise.reject(this.#failure);
    return this.#waiters.wait();
  }

  async send(key: string, tensor: OutgoingTensor): Promise<void> {
    if (this.#failure !== null) throw this.#failure;
    const { shape, dtype, byteLength, copyToPlace } = tensor;
    this.#begunBytes += byteLength;
    const fields = { key, shape: [...shape], dtype, totalBytes: byteLength };
    if (this.#carrier !== null && copyToPlace !== undefined && byteLength > 0) {
      const announce = () => this.#queue(this.#slabs.take(0), { ...fields, beside: true });
      await this.#carrier.send({ byteLength, copyToPlace }, announce).catch((error: unknown) => {
        throw this.#failure ?? error;
      });
      return;
    }
    const slabs = this.#slabs.take(byteLength);
    await tensor.copyTo(slabs.map(({ payload }) => payload));
    if (this.#failure !== null) throw this.#failure;
    this.#queue(slabs, fields);
  }

  /** Takes over a stream that the receiver opened; `request` is its first message. */
  attach(stream: FrameSink, request: PullRequest__Output): void {
    this.#stream?.end();
    this.#stream = stream;
    this.#writing = false;
    stream.onClosed(() => {
      if (this.#stream === stream) this.#stream = null;
    });
    stream.onRequest((next) => {
      if (this.#stream === stream) this.#heed(stream, next, next.resend);
    });
    this.#heed(stream, request, true);
  }

  close(): void {
    this.#watch.stop();
    this.#stream?.end();
    this.#stream = null;
    this.#failure ??= new PipeloraError("PL_LINK_FAILED", `${this.#name} was closed`);
    this.#carrier?.close();
    this.#waiters.wake(this.#failure);
  }

  get #name(): string {
    return linkName(this.#options.ends, this.#carrier === null ? "grpc" : "nccl");
  }

  #queue(slabs: readonly { slab: Buffer; payload: Buffer }[], fields: Omit<FrameFields, "sequence">): void {
    if (this.#kept.length === 0) this.#watch.progress();
    for (const { slab, payload } of slabs) {
      const sequence = this.#first + this.#kept.length;
      this.#kept.push({ bytes: sealFrame(slab, payload.length, { ...fields, sequence }, this.#checksum), slab });
    }
    this.#pump();
  }

  #heed(stream: FrameSink, { received, grantedBytes }: PullRequest__Output, again: boolean): void {
    if (received < this.#first || received > this.#first + this.#kept.length) {
      const have = `frames ${this.#first} to ${this.#first + this.#kept.length} are here`;
      stream.refuse({ reason: `${this.#name}: frame ${received} was asked for, ${have}`, final: true });
      return;
    }
    if (received > this.#first || grantedBytes > this.#grantedBytes) this.#watch.progress();
    for (const { slab } of this.#kept.splice(0, received - this.#first)) this.#slabs.give(slab);
    this.#first = received;
    this.#next = again ? received : Math.max(this.#next, received);
    this.#grantedBytes = Math.max(this.#grantedBytes, grantedBytes);
    if (this.#begunBytes < this.#grantedBytes) this.#waiters.wake(this.#failure);
    this.#pump();
  }

  #pump(): void {
    const stream = this.#stream;
    const frame = this.#kept[this.#next - this.#first];
    if (stream === null || frame === undefined || this.#writing) return;
    this.#next++;
    this.#writing = true;
    stream.write(frame.bytes, () => {
      if (this.#stream !== stream) return;
      this.#writing = false;
      this.#pump();
    });
  }

  #stall(): string {
    const { timeoutMs } = this.#options;
    const what =
      this.#stream === null
        ? "the receiver has not opened it"
        : this.#kept.length > 0
          ? `${this.#kept.length} frames are not confirmed`
          : "the receiver takes nothing";
    return `${this.#name} has stalled: no progress for ${timeoutMs / 1000} s, ${what}`;
  }

  #carrierFailed(reason: string): void {
    this.#fail(new PipeloraError("PL_LINK_FAILED", `${this.#name} broke: ${reason}`, { hint: NCCL_HINT }));
  }

  #fail(error: PipeloraError): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    this.close();
    this.#options.onFailed(error);
  }
}

export const STALL_HINT = "See the other rank's log; a slow network or device needs a longer --link-timeout.";
