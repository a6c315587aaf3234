import { withDeadline } from "../common/deadline.ts";
import { type Deferred, deferred } from "../common/deferred.ts";
import { PipeloraError } from "../common/errors.ts";
import { exitCodeOfSignal } from "../common/exit-codes.ts";
import type { Logger } from "../common/log.ts";
import type { Config } from "../config/options.ts";
import { loadEngine } from "../engine/index.ts";
import { CoordinatorConnection } from "../rpc/coordinator-connection.ts";
import type { Hello } from "../rpc/generated/pipelora/v1/Hello.ts";
import type { Shutdown__Output } from "../rpc/generated/pipelora/v1/Shutdown.ts";
import type { Trust } from "../rpc/trust.ts";
import { fromFailure } from "../rpc/wire-error.ts";
import { RankLinks } from "./links.ts";
import { OutputFolders } from "./node/node-files.ts";
import type { RankHealth } from "./node/node-health.ts";
import { Rank } from "./rank.ts";
import type { StopSignals } from "./stop-signals.ts";
import type { HeldLayers } from "./weights/held-layers.ts";

/** Set by a coordinator for workers that it starts itself. Such a worker ends with its connection. */
const LOCAL_WORKER = "PIPELORA_LOCAL_WORKER";
/** The interval of heartbeats until the coordinator has set one. */
const FIRST_HEARTBEAT_MS = 1_000;
/** When a session ends, what has begun (a tensor, a pass of a step) must be over within this time. */
const RELEASE_MS = 60_000;

export interface SessionOptions {
  readonly config: Pick<Config, "coordinator" | "join_timeout" | "model" | "output_dir">;
  readonly device: string;
  readonly hello: Hello;
  readonly trust: Trust;
  readonly health: RankHealth;
  readonly signals: StopSignals;
  /** Frozen weights that are kept from one session to the next. */
  readonly held: HeldLayers;
  readonly log: Logger;
}

/**
 * One stay with a coordinator. It owns the rank, its links and its engine. None of them outlives it, so nothing of an old session can read what
 * a new one receives. Only frozen weights stay with the program, for the next session's engine.
 */
export class Session {
  readonly #options: SessionOptions;
  readonly #links: RankLinks;
  readonly #rank: Rank;
  /** Aborts everything that takes long when the session is over. */
  readonly #over = new AbortController();
  readonly #ended: Deferred<number | "rejoin"> = deferred();
  readonly #owned = process.env[LOCAL_WORKER] !== undefined;
  #told = false;
  #connection: CoordinatorConnection | null = null;

  constructor(options: SessionOptions) {
    const { config, device, trust, health, held, log } = options;
    this.#options = options;
    this.#links = new RankLinks({ addon: loadEngine(), device, trust, note: (text) => log.warn(text) });
    this.#rank = new Rank({
      device,
      links: this.#links,
      outputs: new OutputFolders(config.output_dir),
      folders: { modelDir: config.model, outputDir: config.output_dir },
      held,
      log,
      send: (message) => this.#connection?.send(message),
      onWelcome: (heartbeatMs, number) => {
        log.debug(`joined as rank ${number}`);
        this.#connection?.startHeartbeat(heartbeatMs);
      },
      onCollected: () => this.#connection?.deferHeartbeat(),
      onPrepared: () => {
        health.ready = true;
      },
      onShutdown: (request) => this.#shutDown(request),
      signal: this.#over.signal,
    });
  }

  /** The sending end of a link that a peer asks for; null if this rank has not joined the peer's session. */
  senderFor(open: Parameters<RankLinks["senderFor"]>[0]): ReturnType<RankLinks["senderFor"]> {
    return this.#links.senderFor(open);
  }

  /**
   * Joins, and stays until one side ends the session. Resolves with the exit code, or "rejoin", after everything that the session held is freed.
   * Errors: PL_JOIN_REFUSED, PL_WORKER_MISSING, and the reason with which the coordinator sends this worker away.
   */
  async run(): Promise<number | "rejoin"> {
    const { config, trust, hello, signals } = this.#options;
    const connection = await CoordinatorConnection.open(
      { address: config.coordinator!, trust, deadlineMs: config.join_timeout * 1000 },
      hello,
      {
        onMessage: (message) => this.#rank.handle(message),
        onClosed: (error) => this.#closed(error),
      },
    );
    this.#connection = connection;
    connection.startHeartbeat(FIRST_HEARTBEAT_MS);
    signals.handle((signal, again) => {
      // After SIGTERM the current step is finished and saved. The coordinator then tells this worker to leave.
      if (signal === "SIGTERM" && !again) connection.send({ replyTo: 0, leaving: {} });
      else this.#ended.resolve(exitCodeOfSignal(signal));
    });
    try {
      return await this.#ended.promise;
    } finally {
      signals.handle(null);
      await this.#release(connection);
    }
  }

  #shutDown({ rejoin, reason }: Shutdown__Output): void {
    this.#told = true;
    if (reason === null) this.#ended.resolve(rejoin ? "rejoin" : 0);
    else this.#ended.reject(fromFailure(reason, `the coordinator at ${this.#options.config.coordinator}`));
  }

  #closed(error: PipeloraError | null): void {
    if (this.#told) return;
    if (error?.code === "PL_JOIN_REFUSED") {
      this.#ended.reject(error);
      return;
    }
    // The connection closed without a goodbye: the coordinator died. A worker of another node waits for its successor.
    this.#options.log[this.#owned ? "debug" : "warn"](error?.message ?? "the coordinator closed the connection");
    this.#ended.resolve(this.#owned ? 1 : "rejoin");
  }

  async #release(connection: CoordinatorConnection): Promise<void> {
    this.#options.health.ready = false;
    this.#over.abort(new PipeloraError("PL_INTERRUPTED", "the session with the coordinator ended"));
    const released = this.#rank.end();
    this.#links.close();
    await withDeadline(released, RELEASE_MS, { name: "giving back this rank's engine", code: "PL_WORKER_LOST" });
    await connection.end();
  }
}
