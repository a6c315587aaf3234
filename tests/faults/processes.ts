import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { appendFileSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { startCoordinator, startWorker } from "../support/processes/cli.ts";
import { isAlive } from "../support/processes/processes.ts";

/** Every process of a run carries it, children of children too. */
const MARK = "FAULT_RUN";

export interface End {
  /** As a shell gives it: 128 + the signal for a process that a signal ended. */
  readonly code: number;
  readonly how: string;
}

const SIGNALS: Readonly<Record<string, number>> = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGABRT: 6,
  SIGKILL: 9,
  SIGSEGV: 11,
  SIGTERM: 15,
};

/** A program that a run started, with all it said. */
export class Program {
  readonly name: string;
  readonly pid: number;
  readonly ended: Promise<End>;
  end: End | null = null;
  stdout = "";
  stderr = "";
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #listeners = new Set<(line: string) => void>();

  constructor(name: string, child: ChildProcessWithoutNullStreams, log: string) {
    this.name = name;
    this.#child = child;
    this.pid = child.pid!;
    for (const stream of ["stdout", "stderr"] as const) {
      let rest = "";
      child[stream].on("data", (chunk: Buffer) => {
        const text = chunk.toString();
        this[stream] += text;
        appendFileSync(log, text);
        const lines = (rest + text).split("\n");
        rest = lines.pop()!;
        for (const line of lines) for (const hear of [...this.#listeners]) hear(line);
      });
    }
    this.ended = new Promise((resolve) => {
      const end = (found: End) => {
        this.end ??= found;
        resolve(this.end);
      };
      child.on("error", (error) => end({ code: 1, how: error.message }));
      // Children may hold its output for longer: what it says is through a moment after it is gone.
      child.on("exit", (code, signal) => {
        const found = { code: code ?? 128 + (SIGNALS[signal!] ?? 0), how: signal ?? `code ${code}` };
        const closed = new Promise((heard) => child.once("close", heard));
        void Promise.race([closed, sleep(500)]).then(() => end(found));
      });
    });
  }

  /** Resolves with the first line from now on, of either stream, that `wanted` accepts; never if none comes. */
  says(wanted: (line: string) => boolean, signal: AbortSignal): Promise<string> {
    return new Promise((resolve) => {
      const hear = (line: string) => {
        if (!wanted(line)) return;
        this.#listeners.delete(hear);
        resolve(line);
      };
      this.#listeners.add(hear);
      signal.addEventListener("abort", () => this.#listeners.delete(hear));
    });
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }
}

/** Runs under way: none of their processes outlives the driver. */
const underWay = new Set<Processes>();
process.on("exit", () => {
  for (const processes of underWay) processes.killAll();
});

/** All processes of one run: their logs, and whether any is left. */
export class Processes {
  readonly #folder: string;
  /** Where these processes put temporary files, and nobody else does. */
  readonly temporary: string;
  readonly #mark: string;
  readonly all: Program[] = [];

  /** Logs go to `folder`; `mark` is this run's alone. */
  constructor(folder: string, mark: string) {
    this.#folder = folder;
    this.temporary = join(folder, "tmp");
    mkdirSync(this.temporary);
    this.#mark = mark;
    underWay.add(this);
  }

  start(name: string, program: "coordinator" | "worker", args: readonly string[]): Program {
    const count = this.all.filter((other) => other.name === name).length;
    const log = join(this.#folder, `${name}${count === 0 ? "" : `-${count + 1}`}.log`);
    const start = program === "coordinator" ? startCoordinator : startWorker;
    const started = new Program(name, start(args, { [MARK]: this.#mark, TMPDIR: this.temporary }), log);
    this.all.push(started);
    return started;
  }

  /** Whether a process of this id is one of this run's. */
  owns(pid: number): boolean {
    try {
      return isAlive(pid) && readFileSync(`/proc/${pid}/environ`, "utf8").includes(`${MARK}=${this.#mark}\0`);
    } catch {
      return false;
    }
  }

  /** Living processes of this run. */
  living(): number[] {
    return readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .filter((pid) => this.owns(pid));
  }

  signal(pid: number, signal: NodeJS.Signals): boolean {
    if (!this.owns(pid)) return false;
    try {
      process.kill(pid, signal);
      return true;
    } catch {
      return false;
    }
  }

  /** Those that still live after so long. */
  async left(patienceMs: number): Promise<number[]> {
    const deadline = Date.now() + patienceMs;
    for (;;) {
      const living = this.living();
      if (living.length === 0 || Date.now() > deadline) return living;
      await sleep(50);
    }
  }

  killAll(): void {
    for (const pid of this.living()) this.signal(pid, "SIGKILL");
  }

  close(): void {
    this.killAll();
    underWay.delete(this);
  }
}

/** Command line of a process, for reports. */
export function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim();
  } catch {
    return `pid ${pid}`;
  }
}
