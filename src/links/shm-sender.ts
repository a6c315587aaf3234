import { PipeloraError } from "../common/errors.ts";
import type { NativeAddon, SharedAddress, SharedSender } from "../engine/index.ts";
import { encodeFields } from "../rpc/tensor-frame.ts";
import { STALL_HINT } from "./grpc-sender.ts";
import { linkName, type OutgoingTensor, type SendingEnd } from "./link.ts";
import { type EndOptions, WINDOW_BYTES } from "./options.ts";
import { Waiters } from "./waiters.ts";
import { Watch } from "./watch.ts";

/** Address space, not memory: pages that no tensor has touched cost nothing. */
const CAPACITY_BYTES = 512 << 20;
/** In front of each tensor: four bytes that say how long its description is, the description, and space up to a multiple of this. */
const ALIGN = 64;

/** Where a tensor's bytes begin behind a description of so many bytes. */
export function payloadOffset(headBytes: number): number {
  return Math.ceil((4 + headBytes) / ALIGN) * ALIGN;
}

/** Sends tensors through memory that the receiver has mapped too: they are copied there from device memory, and once more from there. */
export class ShmSender implements SendingEnd {
  readonly #options: EndOptions;
  readonly #shared: SharedSender;
  readonly #watch: Watch;
  #begunBytes = 0;
  #grantedBytes: number;
  readonly #waiters = new Waiters();
  #failure: PipeloraError | null = null;

  constructor(options: EndOptions, addon: NativeAddon) {
    this.#options = options;
    this.#grantedBytes = options.windowBytes ?? WINDOW_BYTES;
    this.#shared = new addon.SharedSender(
      CAPACITY_BYTES,
      () => this.#progress(),
      (reason) => this.#fail(new PipeloraError("PL_LINK_FAILED", `${this.#name} broke: ${reason}`)),
    );
    this.#watch = new Watch(
      options.timeoutMs,
      () => this.#waiters.some,
      () => {
        const text = `${this.#name} has stalled: the receiver has taken nothing for ${options.timeoutMs / 1000} s`;
        this.#fail(new PipeloraError("PL_LINK_FAILED", text, { hint: STALL_HINT }));
      },
    );
  }

  /** For the receiver. */
  get address(): SharedAddress {
    return this.#shared.address;
  }

  room(): Promise<void> | null {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    if (this.#hasRoom()) return null;
    this.#shared.waitForProgress();
    return this.#hasRoom() ? null : this.#waiters.wait();
  }

  async send(key: string, tensor: OutgoingTensor): Promise<void> {
    if (this.#failure !== null) throw this.#failure;
    const { shape, dtype, byteLength } = tensor;
    this.#begunBytes += byteLength;
    const head = encodeFields({ key, shape: [...shape], dtype, totalBytes: byteLength, sequence: 0 });
    const payloadAt = payloadOffset(head.length);
    const bytes = payloadAt + byteLength;
    if (bytes > CAPACITY_BYTES) {
      const text = `${this.#name}: tensor ${key} has ${byteLength} bytes, the shared memory ${CAPACITY_BYTES}`;
      throw new PipeloraError("PL_LINK_FAILED", text, { hint: "Choose smaller micro-batches, or --link grpc." });
    }
    const at = this.#shared.reserve(bytes) ?? (await this.#place(bytes));
    const memory = Buffer.from(this.#shared.memory, at, bytes);
    memory.writeUInt32LE(head.length, 0);
    head.copy(memory, 4);
    await tensor.copyTo(byteLength === 0 ? [] : [memory.subarray(payloadAt)]);
    if (this.#failure !== null) throw this.#failure;
    this.#shared.publish(at);
  }

  close(): void {
    this.#watch.stop();
    this.#failure ??= new PipeloraError("PL_LINK_FAILED", `${this.#name} was closed`);
    this.#shared.close();
    this.#waiters.wake(this.#failure);
  }

  get #name(): string {
    return linkName(this.#options.ends, "shm");
  }

  #hasRoom(): boolean {
    this.#grantedBytes = Math.max(this.#grantedBytes, this.#shared.granted());
    return this.#begunBytes < this.#grantedBytes;
  }

  /** Waits for a place. Free memory may be large enough only in several pieces. */
  async #place(bytes: number): Promise<number> {
    for (;;) {
      this.#shared.waitForProgress();
      const at = this.#shared.reserve(bytes);
      if (at !== null) return at;
      await this.#waiters.wait();
    }
  }

  /** Also called when nothing has happened: whoever waits looks again, and waits again. */
  #progress(): void {
    if (this.#failure !== null) return;
    const before = this.#grantedBytes;
    if (this.#hasRoom() || this.#grantedBytes > before) this.#watch.progress();
    this.#waiters.wake(this.#failure);
  }

  #fail(error: PipeloraError): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    this.close();
    this.#options.onFailed(error);
  }
}
