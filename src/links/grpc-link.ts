import type { Server } from "@grpc/grpc-js";
import { isDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { openTensorStream, serveTensors, type TensorStream } from "../rpc/tensor-stream.ts";
import type { Trust } from "../rpc/trust.ts";
import type { Link, TensorMessage } from "./link.ts";

/** Payload of one gRPC message: large enough to amortise its cost, small enough to interleave. */
const FRAME_BYTES = 1 << 20;
/** Bytes a peer may hold for us before it has taken them, unless told otherwise. */
const WINDOW_BYTES = 256 << 20;

/** Serves this rank's end of all gRPC links: frames of the current session are put together and delivered. */
export function receiveGrpcTensors(
  server: Server,
  session: () => string,
  deliver: (key: string, tensor: TensorMessage, onTaken: () => void) => void,
  fail: (error: PipeloraError) => void,
): void {
  const partial = new Map<string, Uint8Array[]>();
  serveTensors(server, (frame, acknowledge) => {
    // A frame of an earlier session (before a restart) means nothing here.
    if (frame.session !== session()) return acknowledge(frame.payload.length);
    const id = `${frame.fromRank}:${frame.key}`;
    const parts = partial.get(id) ?? [];
    parts.push(frame.payload);
    partial.set(id, parts);
    const received = parts.reduce((sum, part) => sum + part.length, 0);
    if (received < frame.totalBytes) return;
    partial.delete(id);
    if (received > frame.totalBytes || !isDtype(frame.dtype)) {
      fail(
        new PipeloraError(
          "PL_LINK_FAILED",
          `tensor ${frame.key} from rank ${frame.fromRank}: expected ${frame.totalBytes} bytes of ${frame.dtype}, got ${received}`,
        ),
      );
      return;
    }
    const bytes = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
    deliver(frame.key, { shape: frame.shape, dtype: frame.dtype, bytes }, () => acknowledge(received));
  });
}

export interface GrpcLinkOptions {
  readonly address: string;
  readonly trust: Trust;
  readonly session: string;
  readonly fromRank: number;
  readonly toRank: number;
  readonly onBroken: (error: PipeloraError) => void;
  readonly windowBytes?: number;
}

/** Sends tensors over one gRPC stream, at most a window of bytes ahead of the receiver. */
export class GrpcLink implements Link {
  readonly #options: GrpcLinkOptions;
  readonly #stream: TensorStream;
  #inFlight = 0;
  #waiting: (() => void)[] = [];
  #broken: PipeloraError | null = null;

  constructor(options: GrpcLinkOptions) {
    this.#options = options;
    this.#stream = openTensorStream(
      options.address,
      options.trust,
      (bytes) => {
        this.#inFlight -= bytes;
        this.#wake();
      },
      (reason) => {
        this.#broken = new PipeloraError(
          "PL_LINK_FAILED",
          `the link from rank ${options.fromRank} to rank ${options.toRank} (${options.address}) broke: ${reason}`,
        );
        this.#wake();
        options.onBroken(this.#broken);
      },
    );
  }

  async send(key: string, tensor: TensorMessage): Promise<void> {
    const total = tensor.bytes.length;
    const window = this.#options.windowBytes ?? WINDOW_BYTES;
    while (this.#broken === null && this.#inFlight > 0 && this.#inFlight + total > window) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    if (this.#broken !== null) throw this.#broken;
    this.#inFlight += total;
    for (let offset = 0; offset === 0 || offset < total; offset += FRAME_BYTES) {
      this.#stream.push({
        session: this.#options.session,
        fromRank: this.#options.fromRank,
        key,
        shape: [...tensor.shape],
        dtype: tensor.dtype,
        totalBytes: total,
        payload: tensor.bytes.subarray(offset, Math.min(total, offset + FRAME_BYTES)) as Buffer,
      });
    }
  }

  close(): void {
    this.#stream.close();
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}
