import { readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { CPU_CONFIG, ROWS, withCpuWorkload } from "./cpu-workload.ts";
import { makeWorkload, round, runEvents } from "./training-run.ts";

/** Rows of a micro-batch each: 8 a step. */
const ROW_TOKENS = 32;
/** A head nearly as heavy as two blocks. */
const VOCAB = 16_384;
const STEPS = 6;
/** Eight blocks as evenly as can be with the head on the last worker, and with the head on all of them in turn. */
const CASES = [
  { row: "two workers, head on the last", blocks: [5, 3], head: [1] },
  { row: "two workers, head shared", blocks: [4, 4], head: [0, 1] },
  { row: "two workers, 6 and 2 blocks, head shared", blocks: [6, 2], head: [0, 1] },
  { row: "three workers, head on the last", blocks: [3, 3, 2], head: [2] },
  { row: "three workers, head shared", blocks: [3, 3, 2], head: [0, 1, 2] },
  { row: "four workers, head on the last", blocks: [3, 2, 2, 1], head: [3] },
  { row: "four workers, head shared", blocks: [2, 2, 2, 2], head: [0, 1, 2, 3] },
] as const;

/**
 * Steps of real pipelines of CPU workers beside the best that they could do: all that their ranks compute, spread evenly over the workers, or over
 * the machine's cores where those are fewer. Processor time, which other programs on the machine change little, says how evenly the work lies.
 */
export function benchPipelines(print: (row: object) => void): void {
  withCpuWorkload(({ folder, run }) => {
    const config = join(folder, "config.json");
    writeFileSync(config, JSON.stringify({ ...JSON.parse(readFileSync(CPU_CONFIG, "utf8")), vocab_size: VOCAB }));
    const made = makeWorkload(join(folder, "heavy-head"), config, VOCAB, STEPS * ROWS, ROW_TOKENS);
    for (const { row, blocks, head } of CASES) {
      const workers = blocks.length;
      const path = join(folder, "map.json");
      writeFileSync(path, JSON.stringify(mapOf(blocks, head)));
      const flags = ["--calibrate", "always", "--micro-batch-tokens", String(ROW_TOKENS)];
      const events = runEvents(run({ ...made, workers, deviceMap: path, steps: STEPS, flags }));
      const one = events.find(({ event }) => event === "predictions") as unknown as Measured;
      const busy = one.ranks.map((rank) => rank.processor_ms);
      const total = busy.reduce((sum, ms) => sum + ms, 0);
      print({
        ...{ row, step_ms: round(one.step_ms), processor_ms: busy.map((ms) => round(ms)) },
        // A step can be no shorter than the busiest worker's work: the share of the best that the cut alone leaves within reach.
        share_by_cut: round(total / workers / Math.max(...busy), 3),
        share_of_best: round(total / Math.min(workers, cpus().length) / one.step_ms, 3),
        predicted: round(one.predicted_step_ms / one.step_ms, 3),
        at_measured_compute: round(one.simulated_step_ms / one.step_ms, 3),
      });
    }
  });
}

interface Measured {
  readonly step_ms: number;
  readonly predicted_step_ms: number;
  readonly simulated_step_ms: number;
  readonly ranks: readonly { readonly processor_ms: number }[];
}

/** So many blocks on each worker, in order; the embedding in front. */
function mapOf(blocks: readonly number[], head: readonly number[]): Record<string, number | readonly number[]> {
  const devices = blocks.flatMap((count, worker) => Array<number>(count).fill(worker));
  const layers = devices.map((worker, block) => [`model.layers.${block}`, worker]);
  return { "": 0, ...Object.fromEntries(layers), "model.norm": head, lm_head: head };
}
