import { randomUUID } from "node:crypto";
import { deferred } from "../../common/deferred.ts";
import { PipeloraError } from "../../common/errors.ts";
import { comesBack } from "../../common/exit-codes.ts";
import { onDefect } from "../../common/last-words.ts";
import type { Logger } from "../../common/log.ts";
import { Health, listenForProbes } from "../../rpc/health.ts";
import { PROTOCOL_VERSION } from "../../rpc/protocol.ts";
import { type ListeningServer, listen } from "../../rpc/server.ts";
import type { Trust } from "../../rpc/trust.ts";
import { serveCoordination, type WorkerConnection } from "../../rpc/worker-connection.ts";
import { LocalWorkers } from "./local-workers.ts";
import { chooseMembers, describeMissing, type WantedNodes } from "./membership.ts";

const HEARTBEAT_MS = 1_000;
const SILENCE_MS = 10_000;
const FAREWELL_MS = 2_000;
/** The largest message of a worker is one LoRA matrix: those of the largest vocabularies and ranks have half of this. */
const MEMBER_BYTES = 1 << 30;
/** A Hello has some hundred bytes. */
const STRANGER_BYTES = 1 << 20;
/** A few heartbeats: who says nothing for so long gives up its name to a claimant. */
const CONTEST_MS = 3_500;
/** How long a restarted run waits for its own nodes before it takes spare ones. */
const RETURN_MS = 10_000;

export interface ClusterOptions {
  /** Address to listen on for workers of other nodes; null: loopback, and the workers are started here. */
  readonly listen: string | null;
  readonly nnodes: number;
  /** Names of the nodes to wait for; null: any. */
  readonly nodes: readonly string[] | null;
  readonly trust: Trust;
  /** Flags that give local workers the same certificates. */
  readonly tlsFlags: readonly string[];
  /** Address of the plaintext port for probes; null: none. */
  readonly healthListen: string | null;
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
  readonly #servers: ListeningServer[];
  /** Set by whoever drives the run: whether the workers hold their shards and compute. */
  readonly health: Health;
  #local: LocalWorkers | null = null;
  #joined: WorkerConnection[] = [];
  #members: WorkerConnection[] = [];
  #changed = deferred<void>();
  #failure = deferred<never>();
  #closing = false;
  #closed = false;
  #takeBack: () => void = () => {};
  #nodesBefore: readonly string[] = [];
  #awaitsSafePoint = false;
  #leaving: WorkerConnection | null = null;
  session = "";

  private constructor(options: ClusterOptions, servers: ListeningServer[], health: Health) {
    this.#options = options;
    this.#servers = servers;
    this.health = health;
  }

  /** Opens the port. Errors: PL_PORT_UNAVAILABLE. */
  static async open(options: ClusterOptions): Promise<Cluster> {
    let cluster: Cluster | null = null;
    const health = new Health();
    const server = await listen(
      options.listen ?? "127.0.0.1:0",
      options.trust,
      (peer, reason) => options.log.warn(`refused a connection of ${peer}: ${reason}`),
      (grpc) => {
        health.serve(grpc);
        serveCoordination(grpc, {
          onHello: (connection) => cluster?.admit(connection),
          onLeaving: (connection) => cluster?.leave(connection),
          onClosed: (connection, error) => cluster?.closed(connection, error),
        });
      },
      { memberBytes: MEMBER_BYTES, strangerBytes: STRANGER_BYTES },
    );
    cluster = new Cluster(options, [server], health);
    const opened = cluster;
    opened.#takeBack = onDefect((error) => opened.close(comesBack(error)));
    try {
      if (options.healthListen !== null) cluster.#servers.push(await listenForProbes(options.healthListen, health));
    } catch (error) {
      await cluster.close(false);
      throw error;
    }
    return cluster;
  }

  get port(): number {
    return this.#servers[0]!.port;
  }

  /** Workers in rank order. */
  get members(): readonly WorkerConnection[] {
    return this.#members;
  }

  /** Rejects with PL_WORKER_LOST as soon as a member is lost; until the cluster is dissolved, then it is another promise. */
  get failure(): Promise<never> {
    return this.#failure.promise;
  }

  /** The member that was told to stop first and stays for the safe point; null: none. */
  get leaving(): WorkerConnection | null {
    return this.#leaving;
  }

  /**
   * While `work` runs, a member that is told to stop stays a member: `work` is to look at `leaving` after every step, save and
   * end. At any other time there is nothing to save, and such a member is lost at once.
   */
  async untilSafePoint<T>(work: () => Promise<T>): Promise<T> {
    this.#awaitsSafePoint = true;
    try {
      return await work();
    } finally {
      this.#awaitsSafePoint = false;
    }
  }

  /**
   * Starts local workers if the run has its own, waits for all, and gives out ranks, by node name and then by device, so that a restart
   * gives the same ones. Workers of further nodes stay as spares.
   * Errors: PL_WORKER_MISSING after join_timeout, PL_WORKER_LOST if a local worker dies first.
   */
  async form(): Promise<readonly WorkerConnection[]> {
    const { options } = this;
    if (this.#closed) throw new PipeloraError("PL_INTERRUPTED", "the cluster was closed");
    this.session = randomUUID();
    if (options.listen === null) {
      this.#local = LocalWorkers.start(
        {
          address: `127.0.0.1:${this.port}`,
          token: options.trust.token() ?? "",
          tlsFlags: options.tlsFlags,
          devices: options.localDevices,
          threads: options.localThreads,
          pin: options.localPin,
          logFormat: options.logFormat,
          logLevel: options.logLevel,
        },
        (name, reason) => this.#lose(localLoss(name, reason, this.#members.length > 0)),
      );
    }
    this.#members = await this.#waitForAll();
    this.#nodesBefore = [...new Set(this.#members.map(({ hello }) => hello.node))];
    for (const spare of this.#joined.filter((worker) => !this.#members.includes(worker))) {
      this.options.log.warn(`${spare.name} is not needed; it waits for the next attempt`);
    }
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
    this.health.ready = false;
    for (const member of this.#joined) {
      member.notify({ shutdown: { rejoin } });
      member.close("the run ended");
    }
    this.#joined = [];
    this.#members = [];
    this.#leaving = null;
    await this.#local?.stop();
    this.#local = null;
    this.#failure = deferred<never>();
    this.#closing = false;
  }

  /** `rejoin`: this program will be started again, and workers of other nodes are to wait for that. No attempt can follow. */
  async close(rejoin: boolean): Promise<void> {
    this.#closed = true;
    this.#takeBack();
    await this.dissolve(rejoin);
    // A farewell that is cut off on its way would make a worker wait for another coordinator.
    await Promise.all(this.#servers.map((server) => server.drain(FAREWELL_MS)));
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
    const problem = this.#unfit(hello);
    if (problem !== null) {
      this.#refuse(connection, problem);
      return;
    }
    this.#servers[0]!.believe(connection.peer);
    const holders = this.#joined.filter(
      (other) =>
        other.hello.node === hello.node &&
        (other.hello.instance !== hello.instance || other.hello.localIndex === hello.localIndex),
    );
    if (holders.length > 0) {
      this.#contest(connection, holders);
      return;
    }
    if (this.#members.length > 0) {
      this.options.log.warn(`${connection.name} came after the run began; it waits for the next attempt`);
    } else if (this.options.listen !== null) {
      this.options.log.info(`${connection.name} at ${connection.peer} joined`);
    }
    this.#joined.push(connection);
    this.#changed.resolve();
  }

  #unfit({ protocol, build, node }: WorkerConnection["hello"]): PipeloraError | null {
    if (protocol !== PROTOCOL_VERSION || build !== this.options.build) {
      return new PipeloraError(
        "PL_PROTOCOL_MISMATCH",
        `it speaks protocol ${protocol}, build ${build}; this coordinator speaks protocol ${PROTOCOL_VERSION}, build ${this.options.build}`,
        { hint: "Run the same version on every node." },
      );
    }
    const { nodes } = this.options;
    if (nodes === null || nodes.includes(node)) return null;
    return new PipeloraError("PL_JOIN_REFUSED", `node "${node}" is none of ${nodes.join(", ")}`, {
      hint: "Start the worker with the --node-name that the coordinator's --nodes lists.",
    });
  }

  #refuse(connection: WorkerConnection, error: PipeloraError): void {
    this.options.log.error(`${connection.name} at ${connection.peer} refused: ${error.message}`);
    connection.refuse(error);
  }

  /**
   * A worker claims a place that another holds. A node that was restarted may be back before its end was noticed: the holder is then
   * silent and gives way. One that still speaks keeps its place.
   */
  #contest(connection: WorkerConnection, holders: readonly WorkerConnection[]): void {
    const arrival = performance.now();
    setTimeout(() => {
      if (connection.closed) return;
      const alive = holders.find((holder) => !holder.closed && holder.lastHeard > arrival);
      if (alive === undefined) {
        for (const holder of holders) holder.close(`node "${connection.hello.node}" was started anew`);
        this.admit(connection);
        return;
      }
      const { node } = connection.hello;
      this.#refuse(
        connection,
        new PipeloraError("PL_JOIN_REFUSED", `node name "${node}" is held by ${alive.name} at ${alive.peer}`, {
          hint: "Give each node a name of its own with --node-name, and start one worker program a node.",
        }),
      );
    }, CONTEST_MS).unref();
  }

  private leave(connection: WorkerConnection): void {
    if (this.#awaitsSafePoint && this.#members.includes(connection)) {
      this.options.log.warn(`${connection.name} was told to stop; it stays until the step under way is saved`);
      this.#leaving ??= connection;
      return;
    }
    connection.notify({ shutdown: { rejoin: true } });
    connection.close("it was told to stop");
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

  /** The members, in rank order. */
  async #waitForAll(): Promise<WorkerConnection[]> {
    const start = Date.now();
    const deadline = start + this.options.joinTimeoutS * 1000;
    for (;;) {
      const strangersToo = Date.now() >= start + RETURN_MS;
      const chosen = this.#choose(strangersToo);
      if (chosen !== null) return chosen;
      this.#changed = deferred<void>();
      const now = Date.now();
      if (now >= deadline) throw this.#missing();
      const timer = setTimeout(
        () => this.#changed.resolve(),
        Math.min(deadline, strangersToo ? deadline : start + RETURN_MS) - now,
      );
      await Promise.race([this.#changed.promise, this.failure]);
      clearTimeout(timer);
    }
  }

  #wanted(): WantedNodes {
    const { listen, nnodes, nodes } = this.options;
    return { count: listen === null ? 1 : nnodes, names: nodes, before: this.#nodesBefore };
  }

  #choose(strangersToo: boolean): WorkerConnection[] | null {
    const placed = this.#joined.map((connection) => ({ ...connection.hello, connection }));
    return chooseMembers(placed, this.#wanted(), strangersToo)?.map(({ connection }) => connection) ?? null;
  }

  #missing(): PipeloraError {
    const hellos = this.#joined.map(({ hello }) => hello);
    return new PipeloraError(
      "PL_WORKER_MISSING",
      `expected the workers of ${this.#wanted().count} nodes within ${this.options.joinTimeoutS} s; ${describeMissing(hellos, this.#wanted())}`,
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
