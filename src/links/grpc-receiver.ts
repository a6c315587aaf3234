import { isDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import type { Frame__Output } from "../rpc/generated/pipelora/v1/Frame.ts";
import { PROTOCOL_VERSION } from "../rpc/protocol.ts";
import { type Checksum, openFrame } from "../rpc/tensor-frame.ts";
import { type FrameSource, type Refused, TensorClient } from "../rpc/tensor-stream.ts";
import { type MakeCarrier, STALL_HINT } from "./grpc-sender.ts";
import { linkName, type ReceivingEnd } from "./link.ts";
import { NCCL_HINT, type NcclReceivingCarrier } from "./nccl-carrier.ts";
import { type ReceiverOptions, WINDOW_BYTES } from "./options.ts";

/** A frame that is corrupted this often in a row points to a fault other than the network's. */
const CORRUPTIONS = 4;
const CONFIRM_FRAMES = 8;
const CONFIRM_MS = 2;
const REOPEN_MS = 500;

/**
 * Opens the stream from one sender, and opens it again if it breaks. Checks frames, joins them into tensors, and grants room. A tensor
 * that a frame only announces comes through the carrier.
 */
export class GrpcReceiver implements ReceivingEnd {
  readonly #options: ReceiverOptions;
  readonly #checksum: Checksum;
  readonly #carrier: NcclReceivingCarrier | null;
  #client: TensorClient | null = null;
  #stream: FrameSource | null = null;
  #brokenSince: number | null = performance.now();
  #reopening: NodeJS.Timeout | null = null;
  #attempts = 0;
  /** Sequence number of the next frame. */
  #expected = 0;
  #confirmed = 0;
  #corrupted = 0;
  #resending = false;
  #parts: Buffer[] = [];
  #partBytes = 0;
  /** Bytes of tensors that have arrived whole, and bytes of those that were taken. */
  #receivedBytes = 0;
  #takenBytes = 0;
  #grantedBytes = 0;
  #confirming: NodeJS.Timeout | null = null;
  #ended = false;
  #failure: PipeloraError | null = null;

  constructor(
    options: ReceiverOptions,
    checksum: Checksum,
    makeCarrier: MakeCarrier<NcclReceivingCarrier> | null = null,
  ) {
    this.#options = options;
    this.#checksum = checksum;
    this.#carrier = makeCarrier?.((reason) => this.#carrierFailed(reason)) ?? null;
    this.#open();
  }

  /** Resolves when it can receive device tensors; at once without a carrier. Errors: PL_LINK_FAILED. */
  async opened(): Promise<void> {
    await this.#carrier?.opened.catch((error: unknown) => {
      throw this.#failure ?? error;
    });
  }

  awaited(): void {
    // Usually the sender has room enough.
    if (this.#grantedBytes <= this.#receivedBytes) this.#confirm();
  }

  close(): void {
    this.#ended = true;
    if (this.#reopening !== null) clearTimeout(this.#reopening);
    if (this.#confirming !== null) clearTimeout(this.#confirming);
    this.#stream?.close();
    this.#client?.close();
    this.#carrier?.close();
  }

  get #name(): string {
    return linkName(this.#options.ends, this.#carrier === null ? "grpc" : "nccl");
  }

  #open(): void {
    const { ends, timeoutMs } = this.#options;
    this.#resending = true;
    // A sender that can't be reached may never answer, so the whole attempt has a deadline.
    const left = timeoutMs - (performance.now() - this.#brokenSince!);
    this.#reopening = setTimeout(() => this.#broken({ reason: "no answer", code: null }), Math.max(left, 0));
    // A new client reads replaced certificates.
    this.#client?.close();
    this.#client = new TensorClient(this.#options.address, this.#options.trust);
    this.#stream = this.#client.pull(
      () => {
        if (this.#reopening !== null) clearTimeout(this.#reopening);
        this.#reopening = null;
        if (this.#expected > 0) this.#options.note?.(`${this.#name} broke and was opened again`);
        this.#brokenSince = null;
        this.#attempts = 0;
      },
      (frame) => this.#receive(frame),
      (why) => this.#broken(why),
    );
    const open = { protocol: PROTOCOL_VERSION, ...ends };
    this.#stream.request({ open, received: this.#expected, grantedBytes: this.#grant() });
  }

  #broken({ reason, code }: Refused): void {
    if (this.#ended) return;
    this.#stream?.close();
    this.#stream = null;
    if (this.#reopening !== null) clearTimeout(this.#reopening);
    if (code !== null) {
      this.#fail(new PipeloraError(code, `${this.#name} was refused: ${reason}`));
      return;
    }
    this.#brokenSince ??= performance.now();
    const { timeoutMs } = this.#options;
    const since = performance.now() - this.#brokenSince;
    if (since >= timeoutMs) {
      const text = `${this.#name} could not be opened for ${Math.round(since / 100) / 10} s: ${reason}`;
      this.#fail(new PipeloraError("PL_LINK_FAILED", text, { hint: STALL_HINT }));
      return;
    }
    this.#reopening = setTimeout(
      () => this.#open(),
      Math.min(REOPEN_MS, 10 * 2 ** this.#attempts++, timeoutMs - since),
    );
  }

  #receive(bytes: Buffer): void {
    const frame = openFrame(bytes, this.#checksum);
    if (frame === null) {
      this.#corruption();
      return;
    }
    if (frame.protocol !== PROTOCOL_VERSION) {
      const versions = `its sender speaks protocol ${frame.protocol}, this rank ${PROTOCOL_VERSION}`;
      this.#fail(new PipeloraError("PL_PROTOCOL_MISMATCH", `${this.#name}: ${versions}`));
      return;
    }
    if (frame.sequence !== this.#expected) {
      // Frames that were already under way when one was requested again.
      if (this.#resending || frame.sequence < this.#expected) return;
      const text = `${this.#name}: frame ${this.#expected} was expected, ${frame.sequence} came`;
      this.#fail(new PipeloraError("PL_LINK_FAILED", text));
      return;
    }
    this.#resending = false;
    this.#corrupted = 0;
    this.#expected++;
    if (frame.beside) {
      this.#takeIn(frame);
    } else {
      this.#parts.push(frame.payload);
      this.#partBytes += frame.payload.length;
      if (this.#partBytes >= frame.totalBytes) this.#complete(frame);
    }
    if (this.#expected - this.#confirmed >= CONFIRM_FRAMES) this.#confirm();
    else this.#confirmSoon();
  }

  #corruption(): void {
    if (++this.#corrupted >= CORRUPTIONS) {
      const text = `${this.#name}: a frame came corrupted ${CORRUPTIONS} times in a row`;
      this.#fail(new PipeloraError("PL_LINK_FAILED", text));
      return;
    }
    this.#options.note?.(`${this.#name}: frame ${this.#expected} came corrupted; it is asked for again`);
    this.#resending = true;
    this.#stream?.request({ received: this.#expected, grantedBytes: this.#grant(), resend: true });
  }

  #complete({ key, shape, dtype, totalBytes }: Frame__Output): void {
    const pieces = this.#parts;
    const bytes = this.#partBytes;
    this.#parts = [];
    this.#partBytes = 0;
    if (bytes !== totalBytes || !isDtype(dtype)) {
      const text = `${this.#name}: tensor ${key}: expected ${totalBytes} bytes of ${dtype}, got ${bytes}`;
      this.#fail(new PipeloraError("PL_LINK_FAILED", text));
      return;
    }
    this.#receivedBytes += bytes;
    this.#options.deliver(key, { shape, dtype, pieces, release: () => this.#taken(bytes) });
  }

  /** A tensor that comes beside the stream: the device receives them in the order of their announcements. */
  #takeIn({ key, shape, dtype, totalBytes }: Frame__Output): void {
    if (this.#carrier === null || !isDtype(dtype)) {
      const text = `${this.#name}: tensor ${key} of ${dtype} was announced, which this end can't take in`;
      this.#fail(new PipeloraError("PL_LINK_FAILED", text));
      return;
    }
    this.#receivedBytes += totalBytes;
    this.#carrier.receive(totalBytes).then(
      (place) => {
        const release = () => {
          place.free();
          this.#taken(totalBytes);
        };
        this.#options.deliver(key, { shape, dtype, pieces: [], place, release });
      },
      (error: unknown) => this.#carrierFailed((error as Error).message),
    );
  }

  #taken(bytes: number): void {
    this.#takenBytes += bytes;
    const behind = this.#takenBytes + this.#window - this.#grantedBytes;
    if (behind >= this.#window / 4) this.#confirm();
    else this.#confirmSoon();
  }

  get #window(): number {
    return this.#options.windowBytes ?? WINDOW_BYTES;
  }

  /** Tensors that wait to be taken are limited in bytes, but the limit never holds up the tensor that a caller waits for. */
  #grant(): number {
    const needed = this.#options.isAwaited() ? this.#receivedBytes + 1 : 0;
    this.#grantedBytes = Math.max(this.#grantedBytes, this.#takenBytes + this.#window, needed);
    return this.#grantedBytes;
  }

  #confirmSoon(): void {
    this.#confirming ??= setTimeout(() => this.#confirm(), CONFIRM_MS);
  }

  #confirm(): void {
    if (this.#confirming !== null) clearTimeout(this.#confirming);
    this.#confirming = null;
    if (this.#ended) return;
    this.#confirmed = this.#expected;
    this.#stream?.request({ received: this.#expected, grantedBytes: this.#grant() });
  }

  #carrierFailed(reason: string): void {
    this.#fail(new PipeloraError("PL_LINK_FAILED", `${this.#name} broke: ${reason}`, { hint: NCCL_HINT }));
  }

  #fail(error: PipeloraError): void {
    if (this.#ended) return;
    this.#failure = error;
    this.close();
    this.#options.onFailed(error);
  }
}
