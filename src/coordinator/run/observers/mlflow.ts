import { basename } from "node:path";
import { z } from "zod";
import { PipeloraError } from "../../../common/errors.ts";
import type { LogEntry } from "../checkpoints/trainer-state.ts";
import { Background, type Observer } from "./observer.ts";

/** Server and credentials, as MLflow's own clients and transformers' MLflowCallback read them. */
export interface MlflowSettings {
  /** The server's address, without a slash at its end. */
  readonly uri: string;
  readonly experiment: string;
  /** An unfinished run to continue; null: a new one. */
  readonly runId: string | null;
  readonly runName: string;
  /** "Bearer …" or "Basic …"; null: none. */
  readonly authorization: string | null;
  /** The deadline of a request. */
  readonly timeoutMs: number;
}

type Environment = Readonly<Record<string, string | undefined>>;

const TIMEOUT_MS = 10_000;
/** The server accepts this many in one request. */
const MOST_PARAMS = 100;
const MOST_PARAM_LENGTH = 500;
/** At most this many entries wait for a slow server. Further ones are dropped. */
const MOST_WAITING = 1000;

/**
 * Reads MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID, MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME with
 * MLFLOW_TRACKING_PASSWORD. Errors: PL_CONFIG_INVALID if the address is not http or https.
 */
export function mlflowSettings(outputDir: string, environment: Environment = process.env): MlflowSettings {
  const value = (key: string) => environment[key] || null;
  const uri = value("MLFLOW_TRACKING_URI");
  if (uri === null || !/^https?:\/\//.test(uri)) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `--report-to mlflow needs MLFLOW_TRACKING_URI, got ${uri ?? "nothing"}`,
      {
        hint: "Set it to the tracking server's address, http://HOST:PORT; folders are not written.",
      },
    );
  }
  const token = value("MLFLOW_TRACKING_TOKEN");
  const user = value("MLFLOW_TRACKING_USERNAME");
  const password = Buffer.from(`${user}:${value("MLFLOW_TRACKING_PASSWORD") ?? ""}`).toString("base64");
  return {
    uri: uri.replace(/\/+$/, ""),
    experiment: value("MLFLOW_EXPERIMENT_NAME") ?? "Default",
    runId: value("MLFLOW_RUN_ID"),
    runName: basename(outputDir),
    authorization: token !== null ? `Bearer ${token}` : user !== null ? `Basic ${password}` : null,
    timeoutMs: TIMEOUT_MS,
  };
}

const experimentReply = z.looseObject({ experiment: z.looseObject({ experiment_id: z.string() }) });
const createdReply = z.looseObject({ experiment_id: z.string() });
const runReply = z.looseObject({ run: z.looseObject({ info: z.looseObject({ run_id: z.string() }) }) });

/** Sends log entries to an MLflow tracking server through its REST API (2.0). Settings are a run's parameters; each log key is a metric. */
export class MlflowObserver implements Observer {
  readonly #server: Server;
  readonly #runId: string;
  readonly #sent: Background;
  readonly #warn: (text: string) => void;
  #waiting = 0;
  #left = 0;

  private constructor(server: Server, runId: string, warn: (text: string) => void) {
    this.#server = server;
    this.#runId = runId;
    this.#warn = warn;
    this.#sent = new Background((message) => warn(`MLflow does not get all of this run: ${message}`));
  }

  /**
   * Opens the run on the server, so that a wrong address or name is found before anything is loaded. `params`: the run's settings. Errors:
   * PL_TRACKING_FAILED.
   */
  static async open(
    settings: MlflowSettings,
    params: Readonly<Record<string, unknown>>,
    warn: (text: string) => void,
  ): Promise<MlflowObserver> {
    const server = new Server(settings);
    const runId = settings.runId ?? (await newRun(server, settings));
    if (settings.runId !== null) await server.post("runs/update", { run_id: runId, status: "RUNNING" });
    else {
      const all = Object.entries(params).flatMap(([key, value]) =>
        value === null ? [] : [{ key, value: shown(value) }],
      );
      for (let at = 0; at < all.length; at += MOST_PARAMS) {
        await server.post("runs/log-batch", { run_id: runId, params: all.slice(at, at + MOST_PARAMS) });
      }
    }
    return new MlflowObserver(server, runId, warn);
  }

  log({ step, ...values }: LogEntry): void {
    const timestamp = Date.now();
    const metrics = Object.entries(values).flatMap(([key, value]) =>
      Number.isFinite(value) ? [{ key, value, timestamp, step }] : [],
    );
    if (this.#waiting >= MOST_WAITING) {
      this.#left += 1;
      return;
    }
    this.#waiting += 1;
    this.#sent.add(async () => {
      try {
        await this.#server.post("runs/log-batch", { run_id: this.#runId, metrics });
      } finally {
        this.#waiting -= 1;
      }
    });
  }

  /** An interrupted run may be resumed: its status is KILLED, not FAILED. */
  async close(error: unknown): Promise<void> {
    const interrupted = error instanceof PipeloraError && error.code === "PL_INTERRUPTED";
    const status = error === null ? "FINISHED" : interrupted ? "KILLED" : "FAILED";
    this.#sent.add(async () => {
      await this.#server.post("runs/update", { run_id: this.#runId, status, end_time: Date.now() });
    });
    await this.#sent.done();
    if (this.#left > 0) this.#warn(`MLflow was too slow: ${this.#left} log entries were left out`);
  }
}

async function newRun(server: Server, { experiment, runName }: MlflowSettings): Promise<string> {
  const named = `experiments/get-by-name?experiment_name=${encodeURIComponent(experiment)}`;
  const found = await server.get(named);
  const id =
    found === null
      ? server.read(createdReply, await server.post("experiments/create", { name: experiment })).experiment_id
      : server.read(experimentReply, found).experiment.experiment_id;
  const created = await server.post("runs/create", {
    experiment_id: id,
    run_name: runName,
    start_time: Date.now(),
    tags: [{ key: "mlflow.source.name", value: "pipelora" }],
  });
  return server.read(runReply, created).run.info.run_id;
}

function shown(value: unknown): string {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length > MOST_PARAM_LENGTH ? `${text.slice(0, MOST_PARAM_LENGTH - 1)}…` : text;
}

class Server {
  readonly #settings: MlflowSettings;

  constructor(settings: MlflowSettings) {
    this.#settings = settings;
  }

  post(path: string, body: object): Promise<unknown> {
    return this.#send(path, { method: "POST", body: JSON.stringify(body) });
  }

  /** Returns null if the server does not have it. */
  get(path: string): Promise<unknown> {
    return this.#send(path, { method: "GET" });
  }

  read<T extends z.ZodType>(schema: T, reply: unknown): z.infer<T> {
    const parsed = schema.safeParse(reply);
    if (parsed.success) return parsed.data;
    throw this.#failed("its reply is none of MLflow's");
  }

  async #send(path: string, init: { readonly method: string; readonly body?: string }): Promise<unknown> {
    const { uri, authorization, timeoutMs } = this.#settings;
    const headers = {
      "content-type": "application/json",
      ...(authorization === null ? {} : { authorization }),
    };
    let response: Response;
    try {
      response = await fetch(`${uri}/api/2.0/mlflow/${path}`, {
        ...init,
        headers,
        signal: AbortSignal.timeout(timeoutMs),
      });
    } catch (cause) {
      const inner = (cause as Error).cause;
      throw this.#failed(
        inner instanceof Error && inner.message !== "" ? inner.message : (cause as Error).message,
        cause,
      );
    }
    const reply = (await response.json().catch(() => null)) as { message?: string; error_code?: string } | null;
    if (response.ok) return reply;
    if (init.method === "GET" && reply?.error_code === "RESOURCE_DOES_NOT_EXIST") return null;
    throw this.#failed(`${path.split("?")[0]}: status ${response.status}, ${reply?.message ?? "no reason given"}`);
  }

  #failed(reason: string, cause?: unknown): PipeloraError {
    return new PipeloraError("PL_TRACKING_FAILED", `the tracking server ${this.#settings.uri}: ${reason}`, {
      hint: "Check MLFLOW_TRACKING_URI, the server, and MLFLOW_TRACKING_TOKEN or _USERNAME and _PASSWORD.",
      ...(cause === undefined ? {} : { cause }),
    });
  }
}
