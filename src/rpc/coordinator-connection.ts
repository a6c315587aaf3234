import { type ClientDuplexStream, credentials } from "@grpc/grpc-js";
import { PipeloraError } from "../common/errors.ts";
import type { FromWorker } from "./generated/pipelora/v1/FromWorker.ts";
import type { Hello } from "./generated/pipelora/v1/Hello.ts";
import type { ToWorker__Output } from "./generated/pipelora/v1/ToWorker.ts";
import { CHANNEL_OPTIONS, protocol } from "./protocol.ts";

export interface CoordinatorEvents {
  readonly onMessage: (message: ToWorker__Output) => void;
  /** Once, when the stream has ended; with the error if it broke. */
  readonly onClosed: (error: PipeloraError | null) => void;
}

/** The worker's end of the control stream. */
export class CoordinatorConnection {
  readonly #stream: ClientDuplexStream<FromWorker, ToWorker__Output>;
  readonly #close: () => void;
  #heartbeat: NodeJS.Timeout | null = null;
  #ended = false;

  private constructor(
    stream: ClientDuplexStream<FromWorker, ToWorker__Output>,
    close: () => void,
    events: CoordinatorEvents,
    address: string,
  ) {
    this.#stream = stream;
    this.#close = close;
    const ended = (error: PipeloraError | null) => {
      if (this.#ended) return;
      this.#ended = true;
      if (this.#heartbeat !== null) clearInterval(this.#heartbeat);
      close();
      events.onClosed(error);
    };
    stream.on("data", events.onMessage);
    stream.on("end", () => ended(null));
    stream.on("error", (error) => ended(lost(address, error.message)));
  }

  /**
   * Dials until the deadline, then opens the session with `hello`.
   * Errors: PL_WORKER_MISSING if nobody answers at the address in time.
   */
  static async open(
    address: string,
    hello: Hello,
    events: CoordinatorEvents,
    deadlineMs: number,
  ): Promise<CoordinatorConnection> {
    const client = new protocol.Coordination(address, credentials.createInsecure(), CHANNEL_OPTIONS);
    await new Promise<void>((resolve, reject) => {
      client.waitForReady(Date.now() + deadlineMs, (error) => {
        if (error === undefined || error === null) return resolve();
        client.close();
        reject(
          new PipeloraError(
            "PL_WORKER_MISSING",
            `no coordinator answered at ${address} within ${deadlineMs / 1000} s: ${error.message}`,
            { hint: "Check --coordinator HOST:PORT, and that the coordinator runs with --listen." },
          ),
        );
      });
    });
    const stream = client.Session();
    const connection = new CoordinatorConnection(stream, () => client.close(), events, address);
    connection.send({ replyTo: 0, hello });
    return connection;
  }

  send(message: FromWorker): void {
    if (!this.#ended) this.#stream.write(message);
  }

  startHeartbeat(intervalMs: number): void {
    this.#heartbeat ??= setInterval(() => this.send({ replyTo: 0, heartbeat: {} }), intervalMs);
  }

  /** Resolves once what was sent has been handed to the network. */
  async end(): Promise<void> {
    if (this.#ended) return;
    await new Promise<void>((resolve) => {
      this.#stream.once("finish", resolve);
      this.#stream.end();
    });
  }

  /** Drops the connection without ceremony. */
  abort(): void {
    this.#stream.cancel();
    this.#close();
  }
}

function lost(address: string, reason: string): PipeloraError {
  return new PipeloraError("PL_WORKER_LOST", `the connection to the coordinator at ${address} broke: ${reason}`);
}
