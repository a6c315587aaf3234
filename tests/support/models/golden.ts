import assert from "node:assert/strict";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { openSafetensors, readFloat32 } from "../../../src/formats/safetensors.ts";
import { readJson } from "../processes/cli.ts";

/** A training run made with transformers and peft (tests/fixtures/goldens). */
export interface GoldenRun {
  readonly folder: string;
  readonly args: Readonly<Record<string, unknown>>;
  readonly sequential: boolean;
  readonly logHistory: readonly Readonly<Record<string, number>>[];
  readonly sampleOrder: readonly (readonly number[])[];
  readonly greedy: { readonly prompt: readonly number[]; readonly ids: readonly number[] };
  readonly totalFlos: number;
}

/** Runs of the families that general parts describe. */
export const FAMILY_RUNS = [
  "gemma2",
  "gemma3",
  "phi3",
  "glm4",
  "granite",
  "qwen3-moe-attention",
  "qwen3-moe-experts",
  "gpt-oss",
  "qwen3-5",
  "qwen3-next",
  "deepseek-v2-lite",
  "llama4",
] as const;

export function goldenRun(name: string): GoldenRun {
  const folder = join(PACKAGE_ROOT, "tests", "fixtures", "goldens", name);
  const expected = readJson<{
    trainer_args: Record<string, unknown>;
    sequential: boolean;
    log_history: Record<string, number>[];
    sample_order: number[][];
    greedy: { prompt: number[]; ids: number[] };
    trainer_state: { total_flos: number };
  }>(folder, "expected.json");
  return {
    folder,
    args: expected.trainer_args,
    sequential: expected.sequential,
    logHistory: expected.log_history,
    sampleOrder: expected.sample_order,
    greedy: expected.greedy,
    totalFlos: expected.trainer_state.total_flos,
  };
}

/** The command line of a golden run: it starts from the library's own first adapter. */
export function goldenFlags(golden: GoldenRun, outputDir: string, ...more: string[]): string[] {
  const shown = (value: unknown) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  const args = Object.entries(golden.args).flatMap(([key, value]) => [`--${key.replaceAll("_", "-")}`, shown(value)]);
  return [
    ...["--model", join(golden.folder, "model"), "--dataset", join(golden.folder, "data.jsonl")],
    ...["--adapter", join(golden.folder, "adapter_init"), "--output-dir", outputDir],
    ...args,
    ...["--train-sampling-strategy", golden.sequential ? "sequential" : "random"],
    ...["--compute-dtype", "float32", "--log-level", "warn", "--json"],
    ...more,
  ];
}

/** Relative distance ‖a − b‖ / ‖b‖ of two adapters over all their tensors; they must hold the same ones. */
export async function adapterDistance(dir: string, reference: string): Promise<number> {
  const a = await openSafetensors(join(dir, "adapter_model.safetensors"));
  const b = await openSafetensors(join(reference, "adapter_model.safetensors"));
  assert.deepEqual([...a.tensors.keys()].sort(), [...b.tensors.keys()].sort());
  let difference = 0;
  let norm = 0;
  for (const [name, location] of b.tensors) {
    const [x, y] = [await readFloat32(a.tensors.get(name)!), await readFloat32(location)];
    assert.equal(x.length, y.length);
    for (let i = 0; i < y.length; i++) {
      difference += (x[i]! - y[i]!) ** 2;
      norm += y[i]! ** 2;
    }
  }
  return Math.sqrt(difference / norm);
}

export function relative(a: number, b: number): number {
  return Math.abs(a - b) / Math.abs(b);
}
