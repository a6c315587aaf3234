import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../src/common/root.ts";

export interface RunOptions {
  readonly model: string;
  readonly dataset: string;
  readonly output: string;
  /** CPU workers; null: one for each GPU. */
  readonly workers: number | null;
  /** CPU threads of each worker. */
  readonly threads: number;
  /** Cores for the whole run, as taskset takes them; null: all. */
  readonly cores: string | null;
  readonly steps: number;
  /** none: balanced. */
  readonly deviceMap?: string;
  /** Flags of the adapter; none: rank 8 on every linear. */
  readonly lora?: readonly string[];
  readonly flags?: readonly string[];
}

const LORA = ["--target-modules", "all-linear", "--lora-r", "8", "--lora-alpha", "32"];
const COORDINATOR = join(PACKAGE_ROOT, "dist", "cli", "coordinator.js");

/** JSON events of a real run (coordinator and worker processes). */
export function runEvents(options: RunOptions): Record<string, unknown>[] {
  const command = [
    ...[process.execPath, COORDINATOR, "--model", options.model, "--dataset", options.dataset],
    ...["--output-dir", options.output, "--overwrite-output-dir", "--save-strategy", "no", "--logging-steps", "1000"],
    ...["--max-steps", String(options.steps), "--train-sampling-strategy", "sequential"],
    ...["--device-map", options.deviceMap ?? "balanced"],
    ...(options.workers === null ? [] : ["--workers", String(options.workers)]),
    ...["--threads", String(options.threads), "--log-level", "warn", "--json"],
    ...[...(options.lora ?? LORA), ...(options.flags ?? [])],
  ];
  if (options.cores !== null) command.unshift("taskset", "-c", options.cores);
  const result = spawnSync(command[0]!, command.slice(1), { encoding: "utf8", maxBuffer: 1 << 28 });
  if (result.status !== 0) throw new Error(`the run failed: ${result.stderr}`);
  return result.stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

/** Milliseconds of each optimizer step, the warm-up steps left out. */
export function stepTimes(options: RunOptions): number[] {
  const steps = runEvents(options).filter(({ event }) => event === "step");
  return steps.map(({ stepMs }) => stepMs as number).slice(2);
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)]!;
}

export function round(value: number, digits = 1): number {
  return Number(value.toFixed(digits));
}

/** A checkpoint of random weights and rows of ready ids, every token a label. */
export function makeWorkload(
  folder: string,
  configPath: string,
  vocab: number,
  rows: number,
  tokens: number,
): { model: string; dataset: string } {
  const model = join(folder, "model");
  makeModel(configPath, model);
  return { model, dataset: makeRows(join(folder, "rows.jsonl"), vocab, rows, tokens) };
}

/** A checkpoint of random weights in a new folder. */
export function makeModel(configPath: string, model: string): void {
  mkdirSync(model, { recursive: true });
  const made = spawnSync(process.execPath, [COORDINATOR, "init-model", "--config", configPath, "--output-dir", model], {
    encoding: "utf8",
  });
  if (made.status !== 0) throw new Error(`init-model failed: ${made.stderr}`);
}

/** Writes rows of ready ids and gives the path back. */
export function makeRows(path: string, vocab: number, rows: number, tokens: number): string {
  const row = (index: number) => ({
    input_ids: Array.from({ length: tokens }, (_, t) => (index * 7919 + t * 104729 + 13) % vocab),
  });
  writeFileSync(path, Array.from({ length: rows }, (_, index) => `${JSON.stringify(row(index))}\n`).join(""));
  return path;
}
