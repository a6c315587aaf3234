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

/**
 * Worker processes that this coordinator started. Each is its own process group, so that Ctrl-C reaches only the
 * coordinator, and each leaves by itself when its connection to the coordinator ends.
 */
export class LocalWorkers {
  readonly #children: ChildProcess[] = [];
  #stopping = false;

  static start(options: LocalWorkerOptions, onExit: (name: string, reason: string) => void): LocalWorkers {
    const workers = new LocalWorkers();
    const instance = randomUUID();
    options.devices.forEach((device, index) => {
      const script = join(PACKAGE_ROOT, "dist", "cli", "worker.js");
      const flags = ["--coordinator", options.address, "--devices", device, "--threads", String(options.threads)];
      const logging = ["--log-format", options.logFormat, "--log-level", options.logLevel];
      const command = [process.execPath, script, ...flags, ...options.tlsFlags, ...logging];
      const pinned = options.pin?.[index];
      if (pinned !== undefined) command.unshift("taskset", "-c", pinned);
      const child = spawn(command[0]!, command.slice(1), {
        stdio: ["ignore", "inherit", "inherit"],
        detached: true,
        env: {
          ...ownEnvironment(),
          PIPELORA_NODE_INSTANCE: instance,
          PIPELORA_JOIN_TOKEN: options.token,
          PIPELORA_LOCAL_INDEX: String(index),
          PIPELORA_NODE_DEVICES: String(options.devices.length),
          PIPELORA_LOCAL_WORKER: "1",
          PIPELORA_PARENT_PID: String(process.pid),
        },
      });
      const name = `local worker ${index} (${device})`;
      child.on("error", (error) => onExit(name, error.message));
      child.on("exit", (code, signal) => {
        if (!workers.#stopping)
          onExit(name, signal === null ? `it exited with code ${code}` : `it was killed by ${signal}`);
      });
      workers.#children.push(child);
    });
    return workers;
  }

  /** Asks nothing: ends every process, first politely, after a second for good. Resolves when all are gone. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.all(this.#children.map(stopChild));
  }

  killNow(): void {
    this.#stopping = true;
    for (const child of this.#children) child.kill("SIGKILL");
  }
}

/** What the environment says of a worker's flags is meant for workers that join by themselves. */
function ownEnvironment(): NodeJS.ProcessEnv {
  const flags = new Set(Object.values(OPTIONS).map((option: Option) => option.environment));
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !flags.has(name)));
}

async function stopChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const gone = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  // The end of its connection is on its way already; most workers are gone before these.
  const term = setTimeout(() => child.kill("SIGTERM"), 1_000);
  const kill = setTimeout(() => child.kill("SIGKILL"), 3_000);
  await gone;
  clearTimeout(term);
  clearTimeout(kill);
}
