import type { Server, ServerDuplexStream } from "@grpc/grpc-js";
import { type Deferred, deferred } from "../common/deferred.ts";
import { PipeloraError } from "../common/errors.ts";
import type { BoundaryState__Output } from "./generated/pipelora/v1/BoundaryState.ts";
import type { FromWorker__Output } from "./generated/pipelora/v1/FromWorker.ts";
import type { Hello__Output } from "./generated/pipelora/v1/Hello.ts";
import type { ToWorker } from "./generated/pipelora/v1/ToWorker.ts";
import { protocol } from "./protocol.ts";
import { fromFailure, toFailure } from "./wire-error.ts";

type Stream = ServerDuplexStream<FromWorker__Output, ToWorker>;

interface Pending {
  readonly reply: Deferred<FromWorker__Output>;
  readonly deadline: NodeJS.Timeout;
  /** Messages that precede the reply. */
  readonly onPart: ((message: FromWorker__Output) => void) | undefined;
}

export interface WorkerConnectionEvents {
  readonly onHello: (connection: WorkerConnection) => void;
  /** The worker was told to stop and waits for the order to leave. */
  readonly onLeaving: (connection: WorkerConnection) => void;
  /** Once, when the stream ended for whatever reason. */
  readonly onClosed: (connection: WorkerConnection, error: PipeloraError) => void;
}

/** For the first message of a stream. */
const HELLO_MS = 10_000;
/** Deadline of a reply that needs no computing: heartbeats also come from a worker whose reply was lost. */
const REPLY_MS = 10 * 60_000;
/**
 * Deadline of work that depends on model, data, disk or a hub (which may ask for pauses). Links and heartbeats have shorter ones of their
 * own.
 */
const WORK_MS = 12 * 60 * 60_000;
const WORK: ReadonlySet<string> = new Set([
  "preflight",
  "prepare",
  "runStep",
  "evaluate",
  "infer",
  "calibrate",
  "probeLink",
]);

/** A timer that fires this late shows that this process stood still, not a worker. */
const ASLEEP_MS = 1_000;

/** Adds the coordination service to a server: one WorkerConnection a worker. */
export function serveCoordination(server: Server, events: WorkerConnectionEvents): void {
  server.addService(protocol.Coordination.service, {
    Session: (stream: Stream) => {
      new WorkerConnection(stream, events);
    },
  });
}

/**
 * The coordinator's end of one worker's control stream: requests with their replies, and the worker's liveness. Every pending request
 * rejects with PL_WORKER_LOST when the worker dies, closes its stream or sends nothing for too long.
 */
export class WorkerConnection {
  #hello: Hello__Output | null = null;
  readonly #stream: Stream;
  readonly #events: WorkerConnectionEvents;
  readonly #pending = new Map<number, Pending>();
  #nextRequest = 1;
  #closed: PipeloraError | null = null;
  #silence: NodeJS.Timeout | null = null;
  readonly #introduction = setTimeout(
    () => this.#lost(`it said no hello within ${HELLO_MS / 1000} s`),
    HELLO_MS,
  ).unref();
  /** How errors and logs name this worker. */
  name = "a worker that has not introduced itself";
  /** When the worker last sent anything, by performance.now(). */
  lastHeard = performance.now();
  /** Hears of a failure that answers no request. */
  onFailure: ((error: PipeloraError) => void) | null = null;
  /** Hears of trained values that it was asked to tell during a round. */
  onState: ((told: BoundaryState__Output) => void) | null = null;

  constructor(stream: Stream, events: WorkerConnectionEvents) {
    this.#stream = stream;
    this.#events = events;
    stream.on("data", (message: FromWorker__Output) => this.#receive(message));
    stream.on("error", (error) => this.#lost(error.message));
    stream.on("end", () => this.#lost("it closed its connection"));
    stream.on("cancelled", () => this.#lost("its connection broke"));
  }

  get hello(): Hello__Output {
    if (this.#hello === null) throw new PipeloraError("PL_INTERNAL", `${this.name}: no hello yet`);
    return this.#hello;
  }

  /** The address that it came from. */
  get peer(): string {
    return this.#stream.getPeer();
  }

  get closed(): boolean {
    return this.#closed !== null;
  }

  /** Sends a request; resolves with its reply, rejects with the worker's failure. */
  request(body: ToWorker, onPart?: (message: FromWorker__Output) => void): Promise<FromWorker__Output> {
    if (this.#closed !== null) return Promise.reject(this.#closed);
    const request = this.#nextRequest++;
    const reply = deferred<FromWorker__Output>();
    const what = Object.keys(body)[0] ?? "request";
    const ms = WORK.has(what) ? WORK_MS : REPLY_MS;
    const deadline = setTimeout(() => this.#lost(`it gave no reply to ${what} within ${ms / 1000} s`), ms).unref();
    this.#pending.set(request, { reply, deadline, onPart });
    this.#write({ ...body, request });
    return reply.promise;
  }

  /** Sends parts that belong to a request's number and have no reply of their own, then waits for the reply. */
  requestWithParts(body: ToWorker, parts: Iterable<ToWorker>): Promise<FromWorker__Output> {
    const request = this.#nextRequest;
    const reply = this.request(body);
    for (const part of parts) this.#write({ ...part, request });
    return reply;
  }

  /** A message that nobody answers. */
  notify(body: ToWorker): void {
    if (this.#closed === null) this.#write({ ...body, request: 0 });
  }

  /** From now on silence longer than this many milliseconds counts as death. */
  watch(silenceMs: number): void {
    let due = performance.now() + silenceMs;
    const later = (ms: number) => {
      due = performance.now() + ms;
      this.#silence = setTimeout(check, ms);
    };
    // Starts over if a message came meanwhile: cheaper than resetting a timer with every message.
    const check = () => {
      const now = performance.now();
      // This process itself stood still (stopped, or busy): messages that came meanwhile have to be read first.
      if (now - due > ASLEEP_MS) return later(silenceMs);
      const left = this.lastHeard + silenceMs - now;
      if (left > 0) later(left);
      else this.#lost(`it has been silent for ${Math.round(silenceMs / 1000)} s`);
    };
    this.#silence ??= setTimeout(check, silenceMs);
  }

  /** The worker gave a sign of life, itself or through another. */
  heard(): void {
    this.lastHeard = performance.now();
  }

  /** Sends the worker away for good, with the reason: its program ends with this error. */
  refuse(error: PipeloraError): void {
    this.notify({ shutdown: { rejoin: false, reason: toFailure(error) } });
    this.#lost("it was refused");
  }

  /** Ends the connection; the worker takes it as the order to leave. */
  close(reason: string): void {
    this.#lost(reason);
  }

  #write(message: ToWorker): void {
    this.#stream.write(message);
  }

  #receive(message: FromWorker__Output): void {
    this.heard();
    if (message.body === "hello" && message.hello) {
      if (this.#hello !== null) {
        this.#lost("it introduced itself twice");
        return;
      }
      clearTimeout(this.#introduction);
      this.#hello = message.hello;
      this.name = `worker ${message.hello.node}/${message.hello.device} (pid ${message.hello.pid})`;
      this.#events.onHello(this);
      return;
    }
    if (message.body === "heartbeat") return;
    if (message.body === "leaving") {
      this.#events.onLeaving(this);
      return;
    }
    if (message.body === "boundaryState" && message.boundaryState) {
      this.onState?.(message.boundaryState);
      return;
    }
    if (message.replyTo === 0 && message.failure) {
      this.onFailure?.(fromFailure(message.failure, this.name));
      return;
    }
    const pending = this.#pending.get(message.replyTo);
    if (pending === undefined) return;
    if (message.body === "matrixTensor") {
      pending.onPart?.(message);
      return;
    }
    this.#pending.delete(message.replyTo);
    clearTimeout(pending.deadline);
    if (message.body === "failure" && message.failure) pending.reply.reject(fromFailure(message.failure, this.name));
    else pending.reply.resolve(message);
  }

  #lost(reason: string): void {
    if (this.#closed !== null) return;
    this.#closed = new PipeloraError("PL_WORKER_LOST", `${this.name} was lost: ${reason}`, {
      hint: "Look at that worker's own log for the cause.",
    });
    if (this.#silence !== null) clearTimeout(this.#silence);
    clearTimeout(this.#introduction);
    for (const { reply, deadline } of this.#pending.values()) {
      clearTimeout(deadline);
      reply.reject(this.#closed);
    }
    this.#pending.clear();
    this.#stream.end();
    this.#events.onClosed(this, this.#closed);
  }
}
