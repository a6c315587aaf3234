import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../src/common/root.ts";
import { makeWorkload, type RunOptions } from "./training-run.ts";

/** The model that CPUs are measured with: 69 M parameters. */
export const CPU_CONFIG = join(PACKAGE_ROOT, "bench", "cpu-bench.json");
export const ROWS = 8;
export const TOKENS = 128;
const STEPS = 10;

export interface CpuWorkload {
  /** For files that a run needs; gone afterwards. */
  readonly folder: string;
  readonly layers: number;
  /** A run of one worker with one thread, `batches` batches of 8 rows of 128 tokens a step. */
  run(change: Partial<RunOptions>, batches?: number): RunOptions;
}

export function withCpuWorkload(use: (workload: CpuWorkload) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "pipelora-bench-"));
  try {
    const { vocab_size: vocab, num_hidden_layers: layers } = JSON.parse(readFileSync(CPU_CONFIG, "utf8")) as {
      vocab_size: number;
      num_hidden_layers: number;
    };
    const made = makeWorkload(folder, CPU_CONFIG, vocab, 4 * ROWS * STEPS, TOKENS);
    const common = { ...made, output: join(folder, "out"), workers: 1, threads: 1, cores: null, steps: STEPS };
    const run = (change: Partial<RunOptions>, batches = 1): RunOptions => {
      const flags = [...(change.flags ?? []), "--gradient-accumulation-steps", String(batches)];
      return { ...common, ...change, flags };
    };
    use({ folder, layers, run });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
