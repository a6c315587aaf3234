import { isDtype } from "../common/dtype.ts";
import { PipeloraError, toPipeloraError } from "../common/errors.ts";
import type { NativeAddon, SharedReceiver } from "../engine/index.ts";
import { PROTOCOL_VERSION } from "../rpc/protocol.ts";
import { decodeFields } from "../rpc/tensor-frame.ts";
import { TensorClient } from "../rpc/tensor-stream.ts";
import { STALL_HINT } from "./grpc-sender.ts";
import { linkName, type ReceivingEnd } from "./link.ts";
import { type ReceiverOptions, WINDOW_BYTES } from "./options.ts";
import { payloadOffset } from "./shm-sender.ts";

const RETRY_MS = 50;

/** Maps the sender's memory, hands out tensors where they lie in it, and grants room. */
export class ShmReceiver implements ReceivingEnd {
  readonly #options: ReceiverOptions;
  readonly #addon: NativeAddon;
  readonly #client: TensorClient;
  #shared: SharedReceiver | null = null;
  #receivedBytes = 0;
  #takenBytes = 0;
  #grantedBytes = 0;
  #ended = false;

  constructor(options: ReceiverOptions, addon: NativeAddon) {
    this.#options = options;
    this.#addon = addon;
    this.#client = new TensorClient(options.address, options.trust);
    const deadline = setTimeout(() => {
      const text = `${this.#name} could not be opened for ${options.timeoutMs / 1000} s`;
      this.#fail(new PipeloraError("PL_LINK_FAILED", text, { hint: STALL_HINT }));
    }, options.timeoutMs);
    this.#open()
      .catch((error: unknown) => this.#fail(toPipeloraError(error)))
      .finally(() => clearTimeout(deadline));
  }

  awaited(): void {
    this.#grant();
  }

  close(): void {
    this.#ended = true;
    this.#client.close();
    this.#shared?.close();
  }

  get #name(): string {
    return linkName(this.#options.ends, "shm");
  }

  async #open(): Promise<void> {
    const open = { protocol: PROTOCOL_VERSION, ...this.#options.ends };
    while (!this.#ended) {
      const answer = await this.#client.share(open);
      if (this.#ended) return;
      if ("token" in answer) {
        this.#attach(answer);
        return;
      }
      if (answer.code !== null) throw new PipeloraError(answer.code, `${this.#name} was refused: ${answer.reason}`);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  #attach(address: { pid: number; fd: number; token: string }): void {
    try {
      this.#shared = new this.#addon.SharedReceiver(
        address,
        (offset, bytes) => this.#receive(offset, bytes),
        (reason) => this.#fail(new PipeloraError("PL_LINK_FAILED", `${this.#name} broke: ${reason}`)),
      );
    } catch (cause) {
      throw new PipeloraError("PL_LINK_FAILED", `${this.#name}: ${(cause as Error).message}`, {
        cause,
        hint: "Use --link grpc between these workers.",
      });
    }
    this.#grant();
  }

  #receive(offset: number, bytes: number): void {
    const shared = this.#shared;
    if (shared === null || this.#ended) return;
    const memory = Buffer.from(shared.memory, offset, bytes);
    const headBytes = memory.readUInt32LE(0);
    const payloadAt = payloadOffset(headBytes);
    const { key, shape, dtype, totalBytes } = decodeFields(memory.subarray(4, Math.min(4 + headBytes, bytes)));
    if (payloadAt + totalBytes > bytes || !isDtype(dtype)) {
      const text = `${this.#name}: tensor ${key}: ${totalBytes} bytes of ${dtype} do not lie in ${bytes}`;
      this.#fail(new PipeloraError("PL_LINK_FAILED", text));
      return;
    }
    this.#receivedBytes += totalBytes;
    const release = () => {
      this.#takenBytes += totalBytes;
      shared.release(offset);
      this.#grant();
    };
    const pieces = totalBytes === 0 ? [] : [memory.subarray(payloadAt, payloadAt + totalBytes)];
    this.#options.deliver(key, { shape, dtype, pieces, release });
    // Another may still be waited for.
    this.#grant();
  }

  /** Tensors that wait to be taken fill a bounded room. One that a caller waits for is admitted regardless. */
  #grant(): void {
    const window = this.#options.windowBytes ?? WINDOW_BYTES;
    const needed = this.#options.isAwaited() ? this.#receivedBytes + 1 : 0;
    const granted = Math.max(this.#grantedBytes, this.#takenBytes + window, needed);
    if (granted === this.#grantedBytes || this.#shared === null || this.#ended) return;
    this.#grantedBytes = granted;
    this.#shared.grant(granted);
  }

  #fail(error: PipeloraError): void {
    if (this.#ended) return;
    this.close();
    this.#options.onFailed(error);
  }
}
