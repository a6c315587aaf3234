import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../../common/root.ts";
import type { Option } from "../../config/option.ts";
import { OPTIONS } from "../../config/options.ts";

export interface LocalWorkerOptions {
  readonly address: string;
  /** What these workers prove themselves with. */
  readonly token: string;
  readonly tlsFlags: readonly string[];
  /** One worker process a device: "cpu" or "cuda:0". */
  readonly devices: readonly string[];
  /** CPU threads of each. */
  readonly threads: number;
  readonly logFormat: string;
  readonly logLevel: string;
  /** Cores to pin each worker to, as taskset takes them; null: none. */
  readonly pin: readonly string[] | null;
}

/** What became of a worker's process. */
export interface LocalEnd {
  readonly name: string;
  readonly pid: number;
  readonly reason: string;
}

/**
 * Worker processes that this coordinator started, by their place. Each is its own process group, so that Ctrl-C reaches only the
 * coordinator, and each leaves by itself when its connection to the coordinator ends without the order to join again.
 */
export class LocalWorkers {
  readonly #options: LocalWorkerOptions;
  readonly #onExit: (end: LocalEnd) => void;
  readonly #children = new Map<number, ChildProcess>();
  readonly #instance = randomUUID();
  /** Whose end is no news. */
  readonly #stopped = new Set<ChildProcess>();

  constructor(options: LocalWorkerOptions, onExit: (end: LocalEnd) => void) {
    this.#options = options;
    this.#onExit = onExit;
  }

  /** Starts those that don't run. */
  fill(): void {
    for (const [index, device] of this.#options.devices.entries()) {
      if (!this.#children.has(index)) this.#children.set(index, this.#start(index, device));
    }
  }

  /** Ends all but these, by process id. Resolves when they are gone. */
  keep(pids: readonly number[]): Promise<void> {
    return this.end([...this.#children.values()].map(({ pid }) => pid!).filter((pid) => !pids.includes(pid)));
  }

  /** Ends these; they may hang, so nothing is asked. Resolves when they are gone. */
  async end(pids: readonly number[]): Promise<void> {
    const ending = [...this.#children.values()].filter(({ pid }) => pids.includes(pid!));
    for (const child of ending) {
      this.#stopped.add(child);
      child.kill("SIGKILL");
    }
    await Promise.all(ending.map(ended));
  }

  /** Asks nothing: ends every process, first politely, after a second for good. Resolves when all are gone. */
  async stop(): Promise<void> {
    const all = [...this.#children.values()];
    for (const child of all) this.#stopped.add(child);
    await Promise.all(all.map(stopChild));
  }

  killNow(): void {
    for (const child of this.#children.values()) {
      this.#stopped.add(child);
      child.kill("SIGKILL");
    }
  }

  #start(index: number, device: string): ChildProcess {
    const { address, token, tlsFlags, devices, threads, pin, logFormat, logLevel } = this.#options;
    const script = join(PACKAGE_ROOT, "dist", "cli", "worker.js");
    const flags = ["--coordinator", address, "--devices", device, "--threads", String(threads)];
    const logging = ["--log-format", logFormat, "--log-level", logLevel];
    const command = [process.execPath, script, ...flags, ...tlsFlags, ...logging];
    const pinned = pin?.[index];
    if (pinned !== undefined) command.unshift("taskset", "-c", pinned);
    const child = spawn(command[0]!, command.slice(1), {
      stdio: ["ignore", "inherit", "inherit"],
      detached: true,
      env: {
        ...ownEnvironment(),
        PIPELORA_NODE_INSTANCE: this.#instance,
        PIPELORA_JOIN_TOKEN: token,
        PIPELORA_LOCAL_INDEX: String(index),
        PIPELORA_NODE_DEVICES: String(devices.length),
        PIPELORA_LOCAL_WORKER: "1",
        PIPELORA_PARENT_PID: String(process.pid),
      },
    });
    const over = (reason: string) => {
      if (this.#children.get(index) === child) this.#children.delete(index);
      if (!this.#stopped.delete(child)) {
        this.#onExit({ name: `local worker ${index} (${device})`, pid: child.pid ?? 0, reason });
      }
    };
    child.on("error", (error) => over(error.message));
    child.on("exit", (code, signal) =>
      over(signal === null ? `it exited with code ${code}` : `it was killed by ${signal}`),
    );
    return child;
  }
}

/** What the environment says of a worker's flags is meant for workers that join by themselves. */
function ownEnvironment(): NodeJS.ProcessEnv {
  const flags = new Set(Object.values(OPTIONS).map((option: Option) => option.environment));
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !flags.has(name)));
}

function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return Promise.resolve();
  return new Promise((resolve) => child.once("exit", () => resolve()));
}

async function stopChild(child: ChildProcess): Promise<void> {
  const gone = ended(child);
  // The end of its connection is on its way already; most workers are gone before these.
  const term = setTimeout(() => child.kill("SIGTERM"), 1_000);
  const kill = setTimeout(() => child.kill("SIGKILL"), 3_000);
  await gone;
  clearTimeout(term);
  clearTimeout(kill);
}
