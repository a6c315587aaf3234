import { randomUUID } from "node:crypto";
import { deferred } from "../common/deferred.ts";
import { PipeloraError } from "../common/errors.ts";
import type { Logger } from "../common/log.ts";
import { PROTOCOL_VERSION } from "../rpc/protocol.ts";
import { type ListeningServer, listen } from "../rpc/server.ts";
import { serveCoordination, type WorkerConnection } from "../rpc/worker-connection.ts";
import { LocalWorkers } from "./local-workers.ts";

const HEARTBEAT_MS = 1_000;
const SILENCE_MS = 10_000;

export interface ClusterOptions {
  /** Address to listen on for workers of other nodes; null: loopback, and the workers are started here. */
  readonly listen: string | null;
  readonly nnodes: number;
  readonly joinTimeoutS: number;
  /** Devices of the workers started here. */
  readonly localDevices: readonly string[];
  readonly localThreads: number;
  readonly localPin: readonly string[] | null;
  /** Build of this program's engine; workers must have the same. */
  readonly build: string;
  readonly logFormat: string;
  readonly logLevel: string;
  readonly log: Logger;
}

/** The workers of a run: who has joined, under which rank, and whether all still live. */
export class Cluster {
  readonly #options: ClusterOptions;
  readonly #server: ListeningServer;
  #local: LocalWorkers | null = null;
  #joined: WorkerConnection[] = [];
  #members: WorkerConnection[] = [];
  #changed = deferred<void>();
  #failure = deferred<never>();
  #closing = false;
  session = "";

  private constructor(options: ClusterOptions, server: ListeningServer) {
    this.#options = options;
    this.#server = server;
  }

  /** Opens the port. Errors: PL_PORT_UNAVAILABLE. */
  static async open(options: ClusterOptions): Promise<Cluster> {
    let cluster: Cluster | null = null;
    const server = await listen(options.listen ?? "127.0.0.1:0", (grpc) =>
      serveCoordination(grpc, {
        onHello: (connection) => cluster?.admit(connection),
        onClosed: (connection, error) => cluster?.closed(connection, error),
      }),
    );
    cluster = new Cluster(options, server);
    return cluster;
  }

  get port(): number {
    return this.#server.port;
  }

  /** Workers in rank order. */
  get members(): readonly WorkerConnection[] {
    return this.#members;
  }

  /** Rejects with PL_WORKER_LOST as soon as a member is lost. */
  get failure(): Promise<never> {
    return this.#failure.promise;
  }

  /**
   * Starts local workers if the run has its own, waits for all, gives out ranks (by node name, then device).
   * Errors: PL_WORKER_MISSING after join_timeout, PL_WORKER_LOST if a local worker dies first.
   */
  async form(): Promise<readonly WorkerConnection[]> {
    const { options } = this;
    this.#failure = deferred<never>();
    this.session = randomUUID();
    if (options.listen === null) {
      this.#local = LocalWorkers.start(
        {
          address: `127.0.0.1:${this.port}`,
          devices: options.localDevices,
          threads: options.localThreads,
          pin: options.localPin,
          logFormat: options.logFormat,
          logLevel: options.logLevel,
        },
        (name, reason) => this.#lose(localLoss(name, reason, this.#members.length > 0)),
      );
    }
    await this.#waitForAll();
    this.#members = [...this.#joined].sort(byNodeAndDevice);
    this.#members.forEach((member, rank) => {
      member.name = `rank ${rank} (${member.name})`;
      member.notify({
        welcome: { session: this.session, rank, worldSize: this.#members.length, heartbeatMs: HEARTBEAT_MS },
      });
      member.watch(SILENCE_MS);
    });
    return this.#members;
  }

  /** Sends every member away: for good, or to join again for the run's next attempt. */
  async dissolve(rejoin: boolean): Promise<void> {
    this.#closing = true;
    for (const member of this.#joined) {
      member.notify({ shutdown: { rejoin } });
      member.close("the run ended");
    }
    this.#joined = [];
    this.#members = [];
    await this.#local?.stop();
    this.#local = null;
    this.#closing = false;
  }

  async close(): Promise<void> {
    await this.dissolve(false);
    this.#server.close();
  }

  /** Stops everything at once; for the second Ctrl-C. */
  kill(): void {
    this.#local?.killNow();
  }

  private get options(): ClusterOptions {
    return this.#options;
  }

  private admit(connection: WorkerConnection): void {
    const { hello } = connection;
    if (hello.protocol !== PROTOCOL_VERSION || hello.build !== this.options.build) {
      this.options.log.error(
        `${connection.name} refused: it speaks protocol ${hello.protocol}, build ${hello.build}; ` +
          `this coordinator speaks protocol ${PROTOCOL_VERSION}, build ${this.options.build}`,
      );
      connection.notify({ shutdown: { rejoin: false } });
      connection.close("it was refused");
      return;
    }
    if (this.#members.length > 0) {
      this.options.log.warn(`${connection.name} came after the run began; it waits for the next attempt`);
    }
    this.#joined.push(connection);
    this.#changed.resolve();
  }

  private closed(connection: WorkerConnection, error: PipeloraError): void {
    const wasMember = this.#members.includes(connection);
    this.#joined = this.#joined.filter((other) => other !== connection);
    if (wasMember && !this.#closing) this.#lose(error);
  }

  #lose(error: PipeloraError): void {
    if (this.#closing) return;
    this.#failure.reject(error);
    this.#changed.resolve();
  }

  async #waitForAll(): Promise<void> {
    const deadline = Date.now() + this.options.joinTimeoutS * 1000;
    while (!this.#complete()) {
      this.#changed = deferred<void>();
      const left = deadline - Date.now();
      if (left <= 0) throw this.#missing();
      const timer = setTimeout(() => this.#changed.resolve(), left);
      await Promise.race([this.#changed.promise, this.failure]);
      clearTimeout(timer);
    }
  }

  #complete(): boolean {
    if (this.options.listen === null) return this.#joined.length >= this.options.localDevices.length;
    const nodes = new Map<string, WorkerConnection[]>();
    for (const worker of this.#joined) nodes.set(worker.hello.node, [...(nodes.get(worker.hello.node) ?? []), worker]);
    const complete = [...nodes.values()].filter((workers) => workers.length >= workers[0]!.hello.nodeDevices);
    return complete.length >= this.options.nnodes;
  }

  #missing(): PipeloraError {
    const here = this.#joined.map((worker) => worker.name).join(", ") || "nobody";
    const expected =
      this.options.listen === null
        ? `${this.options.localDevices.length} local workers`
        : `the workers of ${this.options.nnodes} nodes`;
    return new PipeloraError(
      "PL_WORKER_MISSING",
      `expected ${expected} within ${this.options.joinTimeoutS} s; joined: ${here}`,
      { hint: "Look at the missing workers' logs, or give them more time with --join-timeout." },
    );
  }
}

/** A worker that dies before it has joined would die again. */
function localLoss(name: string, reason: string, joined: boolean): PipeloraError {
  if (joined) return new PipeloraError("PL_WORKER_LOST", `${name} was lost: ${reason}`);
  return new PipeloraError("PL_WORKER_MISSING", `${name} ended before it joined: ${reason}`, {
    hint: "Its own message stands above.",
  });
}

function byNodeAndDevice(a: WorkerConnection, b: WorkerConnection): number {
  return a.hello.node.localeCompare(b.hello.node, "en", { numeric: true }) || a.hello.localIndex - b.hello.localIndex;
}
