import { type ClientDuplexStream, type ServiceError, status } from "@grpc/grpc-js";
import { withDeadline } from "../common/deadline.ts";
import { PipeloraError } from "../common/errors.ts";
import type { FromWorker } from "./generated/pipelora/v1/FromWorker.ts";
import type { Hello } from "./generated/pipelora/v1/Hello.ts";
import type { ToWorker__Output } from "./generated/pipelora/v1/ToWorker.ts";
import { protocol } from "./protocol.ts";
import { callMetadata, channelTo, type Trust } from "./trust.ts";

/** Where a coordinator is, what both sides prove to each other, and how long it may take to answer. */
export interface CoordinatorPlace {
  readonly address: string;
  readonly trust: Trust;
  readonly deadlineMs: number;
}

export interface CoordinatorEvents {
  readonly onMessage: (message: ToWorker__Output) => void;
  /** Once, when the stream has ended; with the error if it broke. */
  readonly onClosed: (error: PipeloraError | null) => void;
}

const FAREWELL_MS = 5_000;

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
    stream.on("error", (error) => ended(lost(address, error as ServiceError)));
  }

  /**
   * Opens the session with `hello`, at an address that can be reached (see reach()).
   * Errors: PL_WORKER_MISSING if the coordinator is gone again. `onClosed` gets PL_JOIN_REFUSED for a wrong join token.
   */
  static async open(
    { address, trust, deadlineMs }: CoordinatorPlace,
    hello: Hello,
    events: CoordinatorEvents,
  ): Promise<CoordinatorConnection> {
    const channel = channelTo(trust);
    const client = new protocol.Coordination(address, channel.credentials, channel.options);
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
    const stream = client.Session(callMetadata(trust));
    const connection = new CoordinatorConnection(stream, () => client.close(), events, address);
    connection.send({ replyTo: 0, hello });
    return connection;
  }

  send(message: FromWorker): void {
    if (this.#ended) return;
    this.#stream.write(message);
    this.deferHeartbeat();
  }

  /** Another message has just told the coordinator that this worker lives, so the next heartbeat is due an interval later. */
  deferHeartbeat(): void {
    this.#heartbeat?.refresh();
  }

  /** Sends a heartbeat when nothing else was sent for an interval. */
  startHeartbeat(intervalMs: number): void {
    if (this.#heartbeat !== null) clearInterval(this.#heartbeat);
    this.#heartbeat = setInterval(() => this.send({ replyTo: 0, heartbeat: {} }), intervalMs);
  }

  /** Resolves once everything has been handed to the network, or at a deadline. */
  async end(): Promise<void> {
    if (this.#ended) return;
    const handed = new Promise<void>((resolve) => {
      this.#stream.once("finish", resolve);
      this.#stream.end();
    });
    await withDeadline(handed, FAREWELL_MS, { name: "the last message to the coordinator" }).catch(() => this.abort());
  }

  /** Drops the connection without ceremony. */
  abort(): void {
    this.#stream.cancel();
    this.#close();
  }
}

function lost(address: string, error: ServiceError): PipeloraError {
  if (error.code === status.UNAUTHENTICATED) {
    return new PipeloraError("PL_JOIN_REFUSED", `the coordinator at ${address} refuses this worker: ${error.details}`, {
      hint: "Give coordinator and workers the same --join-token-file.",
    });
  }
  return new PipeloraError("PL_WORKER_LOST", `the connection to the coordinator at ${address} broke: ${error.message}`);
}
