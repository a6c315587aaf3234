import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
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
import { type Shortage, type Waiting, waitForAll, waitForEnough } from "./gathering.ts";
import { type LocalEnd, LocalWorkers } from "./local-workers.ts";
import { everyMember } from "./membership.ts";
import { processOf, Returning } from "./returning.ts";

const HEARTBEAT_MS = 1_000;
const SILENCE_MS = 10_000;
const FAREWELL_MS = 2_000;
/** The largest message of a worker is one LoRA matrix: those of the largest vocabularies and ranks have half of this. */
const MEMBER_BYTES = 1 << 30;
/** A Hello has some hundred bytes. */
const STRANGER_BYTES = 1 << 20;
/** A few heartbeats: who says nothing for so long gives up its name to a claimant. */
const CONTEST_MS = 3_500;
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
  /** A run that goes on with the workers there are, if they are so many; null: with as many as it began with. */
  readonly minWorkers: number | null;
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
  readonly #local: LocalWorkers | null;
  readonly #run = randomUUID();
  #joined: WorkerConnection[] = [];
  #members: readonly WorkerConnection[] = [];
  #changed = deferred<void>();
  #failure = deferred<never>();
  #closing = false;
  #closed = false;
  #takeBack: () => void = () => {};
  #nodesBefore: readonly string[] = [];
  #awaitsSafePoint = false;
  /** Told to stop, in this order. */
  readonly #leaving = new Set<WorkerConnection>();
  /** Of the members before, in an elastic run those that it may go on with. */
  readonly #returning = new Returning();
  /** Processes that have joined before: one that ends then would not end at once again. */
  readonly #known = new Set<string>();
  #leftByOrder = false;
  session = "";

  private constructor(options: ClusterOptions, servers: ListeningServer[], health: Health) {
    this.#options = options;
    this.#servers = servers;
    this.health = health;
    this.#local = options.listen === null ? this.#localWorkers(options) : null;
  }

  #localWorkers(options: ClusterOptions): LocalWorkers {
    return new LocalWorkers(
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
      (end) => this.#localEnded(end),
    );
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
    return [...this.#leaving].find((worker) => this.#members.includes(worker)) ?? null;
  }

  /** Whether the member that was lost had been told to stop. */
  get leftByOrder(): boolean {
    return this.#leftByOrder;
  }

  /** An elastic run's members if it began anew now, in rank order. */
  get candidates(): readonly WorkerConnection[] {
    const fresh = this.#joined.filter(
      (worker) => this.#members.includes(worker) || performance.now() - worker.lastHeard < CONTEST_MS,
    );
    const { listen, nodes } = this.options;
    const placed = fresh
      .filter((worker) => !this.#leaving.has(worker))
      .map((connection) => ({ ...connection.hello, connection }));
    return everyMember(placed, { names: nodes, parts: listen === null }).map(({ connection }) => connection);
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
   * gives the same ones. Workers of further nodes stay as spares. An elastic run takes all that are there once its earlier workers are
   * back or lost, at least min_workers and `atLeast`; while they are fewer it waits, and calls `short` once.
   * Errors: PL_WORKER_MISSING after join_timeout, PL_WORKER_LOST if a local worker dies first.
   */
  async form({ atLeast = 1, short = async () => {} }: Shortage = {}): Promise<readonly WorkerConnection[]> {
    const { options } = this;
    if (this.#closed) throw new PipeloraError("PL_INTERRUPTED", "the cluster was closed");
    this.session = randomUUID();
    this.#leftByOrder = false;
    const again = this.#nodesBefore.length > 0;
    const waiting: Waiting = {
      ...{ options, before: this.#nodesBefore, returning: this.#returning, local: this.#local },
      joined: () => this.#joined,
      candidates: () => this.candidates,
      change: (until) => this.#change(until),
    };
    this.#members =
      options.minWorkers === null || !again
        ? await waitForAll(waiting)
        : await waitForEnough(waiting, { atLeast: Math.max(atLeast, options.minWorkers), short });
    this.#nodesBefore = [...new Set(this.#members.map(({ hello }) => hello.node))];
    for (const spare of this.#joined.filter((worker) => !this.#members.includes(worker))) {
      this.options.log.warn(`${spare.name} is not needed; it waits for the next attempt`);
    }
    this.#members.forEach((member, rank) => {
      member.name = `rank ${rank} (${member.name})`;
      member.notify({
        welcome: {
          ...{ session: this.session, rank, worldSize: this.#members.length, heartbeatMs: HEARTBEAT_MS },
          // A GPU's memory is kept over a restart only where the run is elastic: other restarts free all of it, as cards have shown to work.
          run: options.minWorkers === null && member.hello.device !== "cpu" ? "" : this.#run,
        },
      });
      member.watch(SILENCE_MS);
    });
    return this.#members;
  }

  /** Sends every member away, to join again for the run's next attempt. */
  async dissolve(): Promise<void> {
    const back = this.#joined.filter((worker) => !this.#leaving.has(worker));
    this.#closing = true;
    this.#dismiss(true);
    this.#returning.expect(back);
    // A process whose connection was lost may hang.
    await this.#local?.keep(back.map(({ hello }) => hello.pid));
    this.#failure = deferred<never>();
    this.#closing = false;
  }

  #dismiss(rejoin: boolean): void {
    this.health.ready = false;
    for (const member of this.#joined) {
      member.notify({ shutdown: { rejoin } });
      member.close("the run ended");
    }
    this.#joined = [];
    this.#members = [];
    this.#leaving.clear();
  }

  /** `rejoin`: this program will be started again, and workers of other nodes are to wait for that. No attempt can follow. */
  async close(rejoin: boolean): Promise<void> {
    this.#closed = true;
    this.#takeBack();
    this.#closing = true;
    this.#dismiss(rejoin && this.#local === null);
    await this.#local?.stop();
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
    this.#known.add(processOf(hello));
    this.#returning.gone(hello);
    if (this.#members.length > 0) {
      this.options.log.warn(
        this.options.minWorkers === null
          ? `${connection.name} came after the run began; it waits for the next attempt`
          : `${connection.name} joined while the run is on`,
      );
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

  /** A member that is not fit for the run, for good. */
  sendAway(member: WorkerConnection, error: PipeloraError): void {
    this.#leftByOrder = true;
    this.#refuse(member, error);
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
      this.#leaving.add(connection);
      return;
    }
    this.#leftByOrder ||= this.#members.includes(connection);
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

  #localEnded({ name, pid, reason }: LocalEnd): void {
    const ended = { node: hostname(), pid };
    this.#returning.gone(ended);
    // One that was on its way back is started again, or done without.
    if (this.#members.length === 0 && this.#known.has(processOf(ended))) this.#changed.resolve();
    else this.#lose(localLoss(name, reason, this.#members.length > 0));
  }

  /** Until somebody joins or is lost, at the latest until then. Rejects when a member is lost. */
  async #change(until: number): Promise<void> {
    this.#changed = deferred<void>();
    const timer = setTimeout(() => this.#changed.resolve(), Math.max(0, until - Date.now()));
    await Promise.race([this.#changed.promise, this.failure]).finally(() => clearTimeout(timer));
  }
}

/** A worker that dies before it has joined would die again. */
function localLoss(name: string, reason: string, joined: boolean): PipeloraError {
  if (joined) return new PipeloraError("PL_WORKER_LOST", `${name} was lost: ${reason}`);
  return new PipeloraError("PL_WORKER_MISSING", `${name} ended before it joined: ${reason}`, {
    hint: "Its own message stands above.",
  });
}
