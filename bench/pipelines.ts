import { readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { CPU_CONFIG, ROWS, TOKENS, withCpuWorkload } from "./cpu-workload.ts";
import { makeWorkload, median, round, runEvents } from "./training-run.ts";

const PASSES = 3;
const BATCHES = 2;
/** Micro-batches of 2 rows: 8 a step. */
const MICRO_BATCH = 2 * TOKENS;
/** A head as heavy as four blocks: half of a stage's work where four workers have two blocks each. */
const VOCAB = 32_768;

/**
 * Steps of real pipelines of CPU workers beside the best that they could do: all that their ranks compute, spread evenly over workers, or over
 * the machine's cores where those are fewer. Before: each layer on one worker, each worker's layers together. All are gone through in turn.
 */
export function benchPipelines(print: (row: object) => void): void {
  withCpuWorkload(({ folder, run }) => {
    const config = join(folder, "config.json");
    writeFileSync(config, JSON.stringify({ ...JSON.parse(readFileSync(CPU_CONFIG, "utf8")), vocab_size: VOCAB }));
    const made = makeWorkload(join(folder, "heavy-head"), config, VOCAB, 8 * ROWS * BATCHES, TOKENS);
    const cases = [2, 3, 4].flatMap((workers) => [
      { workers, way: "before", deviceMap: "balanced", schedule: "1f1b" },
      { workers, way: "shared head", deviceMap: "auto", schedule: "1f1b" },
      { workers, way: "shared head, interleaved", deviceMap: "auto", schedule: "interleaved" },
      { workers, way: "unequal, shared head", deviceMap: unequal(folder, workers), schedule: "1f1b" },
    ]);
    const found = cases.map((one) => ({ ...one, runs: [] as Measured[] }));
    for (let pass = 0; pass < PASSES; pass++) {
      for (const { workers, deviceMap, schedule, runs } of found) {
        const flags = ["--schedule", schedule, "--calibrate", "always", "--micro-batch-tokens", String(MICRO_BATCH)];
        const events = runEvents(run({ ...made, workers, deviceMap, steps: 8, flags }, BATCHES));
        runs.push(events.find(({ event }) => event === "predictions") as unknown as Measured);
      }
    }
    for (const { workers, way, runs } of found) {
      const of = (value: (one: Measured) => number) => median(runs.map(value));
      const compute = (one: Measured) => one.ranks.reduce((sum, rank) => sum + rank.compute_ms, 0);
      print({
        workers,
        way,
        measured_ms: round(of((one) => one.step_ms)),
        share_of_best: round(
          of((one) => compute(one) / Math.min(workers, cpus().length) / one.step_ms),
          3,
        ),
        // How evenly the work lies: the busiest rank's against the mean.
        busiest: round(
          of((one) => (Math.max(...one.ranks.map((rank) => rank.compute_ms)) * workers) / compute(one)),
          3,
        ),
        predicted: round(
          of((one) => one.predicted_step_ms / one.step_ms),
          3,
        ),
        at_measured_compute: round(
          of((one) => one.simulated_step_ms / one.step_ms),
          3,
        ),
      });
    }
  });
}

interface Measured {
  readonly step_ms: number;
  readonly predicted_step_ms: number;
  readonly simulated_step_ms: number;
  readonly ranks: readonly { readonly compute_ms: number }[];
}

/** Most blocks on the first worker, one on each other; the head on all of them in turn. */
function unequal(folder: string, workers: number): string {
  const path = join(folder, `unequal-${workers}.json`);
  const { num_hidden_layers: layers } = JSON.parse(readFileSync(CPU_CONFIG, "utf8")) as { num_hidden_layers: number };
  const all = Array.from({ length: workers }, (_, worker) => worker);
  const blocks = Array.from({ length: layers }, (_, block) => [
    `model.layers.${block}`,
    Math.max(0, block - (layers - workers)),
  ]);
  writeFileSync(path, JSON.stringify({ "": 0, ...Object.fromEntries(blocks), "model.norm": all, lm_head: all }));
  return path;
}
