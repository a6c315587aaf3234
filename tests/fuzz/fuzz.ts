import { fork } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Report } from "./child.ts";

/** Longest time that one input may take. */
const DEADLINE_MS = 10_000;
/** Resident memory of a batch's process above which the input at hand counts as a bomb. */
const MAX_RESIDENT_BYTES = 1.5 * 2 ** 30;
const WATCH_MS = 100;
/** Time for a process to start before the first input. */
const START_MS = 60_000;

export interface Failure {
  readonly target: string;
  readonly number: number;
  readonly kind: "crash" | "hang" | "memory";
  readonly detail: string;
  /** The input lies here. */
  readonly folder: string;
}

export interface TargetResult {
  readonly target: string;
  readonly inputs: number;
  /** Inputs that were taken as they are. */
  taken: number;
  /** How often each code came. */
  readonly codes: Map<string, number>;
  readonly failures: Failure[];
  slowestMs: number;
  peakBytes: number;
}

export interface FuzzOptions {
  readonly target: string;
  readonly seed: string;
  readonly inputs: number;
  /** Inputs are made here, and those that fail stay. */
  readonly folder: string;
  readonly maxFailures?: number;
}

/** Runs inputs 0 … inputs - 1 of a target, each process of them under a deadline and a bound of memory; goes on behind a failure. */
export async function fuzz(options: FuzzOptions): Promise<TargetResult> {
  const { target, inputs, maxFailures = 50 } = options;
  const result: TargetResult = {
    target,
    inputs,
    taken: 0,
    codes: new Map(),
    failures: [],
    slowestMs: 0,
    peakBytes: 0,
  };
  for (let next = 0; next < inputs && result.failures.length < maxFailures; ) {
    next = await batch(options, next, result);
  }
  return result;
}

/** One process, until its inputs are done or one ends it. Returns the number of the next input. */
function batch({ target, seed, inputs, folder }: FuzzOptions, from: number, result: TargetResult): Promise<number> {
  const script = fileURLToPath(new URL("./child.ts", import.meta.url));
  const child = fork(script, [target, seed, String(from), String(inputs), folder], {
    execArgv: ["--import", "tsx", "--max-old-space-size=1024"],
    stdio: ["ignore", "ignore", "pipe", "ipc"],
  });
  let stderr = "";
  child.stderr!.on("data", (text: Buffer) => {
    stderr = (stderr + text.toString()).slice(-4_000);
  });
  let at: number | null = null;
  let since = performance.now();
  let reached = from;
  let killed: Failure["kind"] | null = null;
  const fail = (number: number, kind: Failure["kind"], detail: string) => {
    const where = join(folder, `${target}-${seed}-${number}`);
    result.failures.push({ target, number, kind, detail, folder: where });
    writeFileSync(`${where}.txt`, `${kind}\n${detail}\n`);
  };
  child.on("message", (report: Report) => {
    since = performance.now();
    if ("begin" in report) {
      at = report.begin;
      return;
    }
    at = null;
    reached = report.end + 1;
    result.slowestMs = Math.max(result.slowestMs, report.ms);
    if (report.fault !== null) fail(report.end, "crash", report.fault);
    else if (report.ms > DEADLINE_MS) fail(report.end, "hang", `it took ${Math.round(report.ms)} ms`);
    else if (report.code === null) result.taken += 1;
    else result.codes.set(report.code, (result.codes.get(report.code) ?? 0) + 1);
  });
  const watch = setInterval(() => {
    const bytes = residentBytes(child.pid!);
    result.peakBytes = Math.max(result.peakBytes, bytes);
    const late = performance.now() - since > (at === null ? START_MS : DEADLINE_MS);
    if (bytes <= MAX_RESIDENT_BYTES && !late) return;
    killed ??= late ? "hang" : "memory";
    child.kill("SIGKILL");
  }, WATCH_MS);
  return new Promise((resolve, reject) => {
    child.on("close", (code, signal) => {
      clearInterval(watch);
      if (at === null && code === 0 && reached === inputs) return resolve(inputs);
      // The fuzzer's own fault: no input was at hand.
      if (at === null && killed === null) return reject(new Error(`${target}: ${stderr || `code ${code}`}`));
      const number = at ?? reached;
      fail(number, killed ?? "crash", stderr || `it ended with ${signal ?? `code ${code}`}`);
      resolve(number + 1);
    });
  });
}

function residentBytes(pid: number): number {
  try {
    return Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

/** The folder of inputs, away when none of them failed. */
export function clear(folder: string, results: readonly TargetResult[]): void {
  if (results.every(({ failures }) => failures.length === 0)) rmSync(folder, { recursive: true, force: true });
}
