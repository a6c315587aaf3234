import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { float32Of } from "../../../src/common/bytes.ts";
import { type QuantizedHold, quantizedHold } from "../../../src/common/quantization.ts";
import { defaultConfig } from "../../../src/config/load.ts";
import { initModel } from "../../../src/coordinator/tools/init-model.ts";
import type { Engine } from "../../../src/engine/index.ts";
import { goldenRun } from "../../support/models/golden.ts";
import { wholeModel } from "../../support/models/one-engine.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const ROWS = 48;
const SEQUENCES = 20;

/** Logits of each sequence's last token, after calls with so many new tokens of each. */
async function lastLogits(engine: Engine, sequences: readonly number[], calls: readonly (readonly number[])[]) {
  const cache = await engine.createCache(SEQUENCES, SEQUENCES * ROWS);
  const total = sequences.map((_, place) => calls.reduce((sum, counts) => sum + counts[place]!, 0));
  const past = sequences.map(() => 0);
  let logits: Float32Array[] = [];
  for (const counts of calls) {
    const tokens = sequences.flatMap((sequence, place) =>
      Array.from({ length: counts[place]! }, (_, i) => (sequence * 31 + (past[place]! + i) * 7 + 3) % 150),
    );
    let end = 0;
    const of = {
      cuSeqlens: Int32Array.of(0, ...counts.map((count) => (end += count))),
      slots: Int32Array.from(sequences, (sequence) => SEQUENCES - 1 - sequence),
      starts: Int32Array.from(sequences, (sequence) => sequence * ROWS),
      past: Int32Array.from(past),
      lengths: Int32Array.from(total),
    };
    const given = await engine.infer(0, cache, of, Int32Array.from(tokens), null);
    const values = float32Of(await engine.read(given));
    const width = given.shape[1]!;
    logits = sequences.map((_, place) => values.slice(place * width, (place + 1) * width));
    given.free();
    for (const [place, count] of counts.entries()) past[place]! += count;
  }
  await engine.freeCache(cache);
  return logits;
}

const NF4 = quantizedHold({ method: "4bit", quantType: "nf4", doubleQuant: true }, "float32");
// With a threshold, columns stay in floating point for the sake of any row of the batch, as in bitsandbytes.
const INT8 = quantizedHold({ method: "8bit", threshold: 0 }, "float32");

async function wide(dir: string): Promise<string> {
  const config = {
    ...{ model_type: "qwen2", architectures: ["Qwen2ForCausalLM"], torch_dtype: "float32", vocab_size: 401 },
    ...{
      hidden_size: 640,
      intermediate_size: 1344,
      num_hidden_layers: 2,
      num_attention_heads: 10,
      num_key_value_heads: 2,
    },
    ...{
      max_position_embeddings: 512,
      rms_norm_eps: 1e-6,
      hidden_act: "silu",
      rope_theta: 10000,
      initializer_range: 0.05,
    },
  };
  writeFileSync(join(dir, "wide.json"), JSON.stringify(config));
  const settings = { ...defaultConfig(), config: join(dir, "wide.json"), output_dir: join(dir, "wide") };
  await initModel(settings);
  return join(dir, "wide");
}

test("a sequence's logits have the same bits alone, in a batch, and in pieces", async (t) => {
  const big = await wide(temporaryFolder(t));
  const small = ["head-dim-96", "gpt-oss", "qwen3-next", "deepseek-v2-lite"];
  const models: [string, string, QuantizedHold | null][] = [
    ...small.map((name): [string, string, null] => [name, join(goldenRun(name).folder, "model"), null]),
    ["wide", big, null],
    ["wide in 4 bits", big, NF4],
    ["wide in 8 bits", big, INT8],
  ];
  const all = Array.from({ length: SEQUENCES }, (_, sequence) => sequence);
  for (const [name, dir, hold] of models) {
    const engine = await wholeModel(dir, null, hold);
    const lengths = all.map((sequence) => 9 + ((sequence * 5) % 23));
    const ones = all.map(() => 1);
    const batch = await lastLogits(engine, all, [lengths, ones]);
    const few = [3, 11, 8];
    const pieces = await lastLogits(engine, few, [
      few.map(() => 2),
      few.map((own) => lengths[own]! - 2),
      few.map(() => 1),
    ]);
    for (const [place, own] of few.entries()) {
      const length = lengths[own]!;
      assert.deepEqual(pieces[place], batch[own], `${name}: three in pieces`);
      const [alone] = await lastLogits(engine, [own], [[length], [1]]);
      assert.deepEqual(alone, batch[own], `${name}: alone`);
      const [token] = await lastLogits(
        engine,
        [own],
        Array.from({ length: length + 1 }, () => [1]),
      );
      assert.deepEqual(token, batch[own], `${name}: token by token`);
    }
    await engine.close();
  }
});
