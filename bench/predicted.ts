import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { withCpuWorkload } from "./cpu-workload.ts";
import { median, round, runEvents } from "./training-run.ts";

const PASSES = 5;
const MODULES = { embedding: "model.embed_tokens", norm: "model.norm", head: "lm_head", rotary: "model.rotary_emb" };

/**
 * Predicted step times, from a calibration, beside real runs: two and three CPU workers, stages as equal as can be and not. All
 * are gone through several times: a calibration of two seconds knows nothing of what the machine's other users do after it.
 */
export function benchPredicted(print: (row: object) => void): void {
  withCpuWorkload(({ folder, layers, run }) => {
    const map = (name: string, blocks: readonly number[]) => {
      const path = join(folder, `${name}.json`);
      writeFileSync(path, JSON.stringify(deviceMap(blocks, layers)));
      return path;
    };
    const cases = [
      { row: "two workers, balanced", workers: 2, map: "balanced" },
      { row: "two workers, 6 and 2 blocks", workers: 2, map: map("unequal-2", [6, 2]) },
      { row: "two workers, fastest", workers: 2, map: "fastest" },
      { row: "three workers, balanced", workers: 3, map: "balanced" },
      { row: "three workers, 5, 2 and 1 blocks", workers: 3, map: map("unequal-3", [5, 2, 1]) },
    ];
    const found = cases.map((one) => ({ ...one, runs: [] as Predictions[] }));
    for (let pass = 0; pass < PASSES; pass++) {
      for (const { workers, map: flag, runs } of found) {
        const events = runEvents(run({ workers, deviceMap: flag, flags: ["--calibrate", "always"] }));
        runs.push(events.find(({ event }) => event === "predictions") as unknown as Predictions);
      }
    }
    for (const { row, runs } of found) {
      const ratios = (of: "predicted_step_ms" | "simulated_step_ms") => runs.map((run) => run[of] / run.step_ms);
      const calibrated = ratios("predicted_step_ms");
      const simulated = ratios("simulated_step_ms");
      print({
        row,
        measured_ms: round(median(runs.map((run) => run.step_ms))),
        predicted_ms: round(median(runs.map((run) => run.predicted_step_ms))),
        ratio: round(median(calibrated), 3),
        passes: calibrated.map((ratio) => round(ratio, 3)),
        // With the ranks as fast as they were in the run: what the schedule and the links alone are off.
        ratio_at_measured_compute: round(median(simulated), 3),
        passes_at_measured_compute: simulated.map((ratio) => round(ratio, 3)),
      });
    }
  });
}

interface Predictions {
  readonly step_ms: number;
  readonly predicted_step_ms: number;
  readonly simulated_step_ms: number;
}

/** So many blocks on each device, in order; the embedding in front, the head behind. */
function deviceMap(blocks: readonly number[], layers: number): Record<string, number> {
  const last = blocks.length - 1;
  const map: Record<string, number> = { [MODULES.embedding]: 0, [MODULES.rotary]: 0 };
  let layer = 0;
  for (const [device, count] of blocks.entries()) {
    for (let own = 0; own < count; own++) map[`model.layers.${layer++}`] = device;
  }
  if (layer !== layers) throw new Error(`${blocks} are not ${layers} blocks`);
  return { ...map, [MODULES.norm]: last, [MODULES.head]: last };
}
