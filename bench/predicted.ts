import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../src/common/root.ts";
import { makeWorkload, runEvents } from "./training-run.ts";

const ROWS = 8;
const TOKENS = 128;
const STEPS = 10;
const MODULES = { embedding: "model.embed_tokens", norm: "model.norm", head: "lm_head", rotary: "model.rotary_emb" };

/** Predicted step times, from a calibration, beside real runs: two and three CPU workers, stages as equal as can be and not. */
export function benchPredicted(print: (row: object) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "pipelora-bench-"));
  try {
    const config = join(PACKAGE_ROOT, "bench", "cpu-bench.json");
    const { vocab_size: vocab, num_hidden_layers: layers } = JSON.parse(readFileSync(config, "utf8")) as {
      vocab_size: number;
      num_hidden_layers: number;
    };
    const workload = makeWorkload(folder, config, vocab, ROWS * STEPS, TOKENS);
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
    for (const { row, workers, map: deviceMapFlag } of cases) {
      const run = { ...workload, output: join(folder, "out"), workers, threads: 1, cores: null, steps: STEPS };
      const events = runEvents({ ...run, deviceMap: deviceMapFlag, flags: ["--calibrate", "always"] });
      const found = events.find(({ event }) => event === "predictions") as unknown as Predictions;
      const { step_ms: measured, predicted_step_ms: predicted } = found;
      print({
        row,
        measured_ms: round(measured),
        predicted_ms: round(predicted),
        ratio: round(predicted / measured, 3),
      });
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

interface Predictions {
  readonly step_ms: number;
  readonly predicted_step_ms: number;
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

function round(value: number, digits = 1): number {
  return Number(value.toFixed(digits));
}
