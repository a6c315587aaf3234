import { readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { CPU_CONFIG, ROWS, TOKENS, withCpuWorkload } from "./cpu-workload.ts";
import { makeWorkload, round, runEvents } from "./training-run.ts";

const BATCHES = 2;
/** Micro-batches of 2 rows: 8 a step. */
const MICRO_BATCH = 2 * TOKENS;
/** A head as heavy as four blocks: half of a stage's work where four workers have two blocks each. */
const VOCAB = 32_768;

/**
 * Steps of real pipelines of CPU workers beside the best that they could do: all that their ranks compute, spread evenly over the workers, or over
 * the machine's cores where those are fewer. Processor time, which other programs on the machine change little, says how evenly the work lies.
 */
export function benchPipelines(print: (row: object) => void): void {
  withCpuWorkload(({ folder, run }) => {
    const config = join(folder, "config.json");
    writeFileSync(config, JSON.stringify({ ...JSON.parse(readFileSync(CPU_CONFIG, "utf8")), vocab_size: VOCAB }));
    const made = makeWorkload(join(folder, "heavy-head"), config, VOCAB, 8 * ROWS * BATCHES, TOKENS);
    for (const workers of [2, 3, 4]) {
      for (const [way, deviceMap, schedule] of [
        ["before", "balanced", "1f1b"],
        ["shared head", "auto", "1f1b"],
        ["shared head, interleaved", "auto", "auto"],
        ["unequal, shared head", unequal(folder, workers), "1f1b"],
      ] as const) {
        const flags = ["--schedule", schedule, "--calibrate", "always", "--micro-batch-tokens", String(MICRO_BATCH)];
        const events = runEvents(run({ ...made, workers, deviceMap, steps: 7, flags }, BATCHES));
        const one = events.find(({ event }) => event === "predictions") as unknown as Measured;
        const busy = one.ranks.map((rank) => rank.processor_ms);
        const total = busy.reduce((sum, ms) => sum + ms, 0);
        print({
          ...{ workers, way, step_ms: round(one.step_ms), processor_ms: busy.map((ms) => round(ms)) },
          // A step can be no shorter than the busiest worker's work: the share of the best that the cut alone leaves within reach.
          share_by_cut: round(total / workers / Math.max(...busy), 3),
          share_of_best: round(total / Math.min(workers, cpus().length) / one.step_ms, 3),
          predicted: round(one.predicted_step_ms / one.step_ms, 3),
          at_measured_compute: round(one.simulated_step_ms / one.step_ms, 3),
        });
      }
    }
  });
}

interface Measured {
  readonly step_ms: number;
  readonly predicted_step_ms: number;
  readonly simulated_step_ms: number;
  readonly ranks: readonly { readonly processor_ms: number }[];
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
