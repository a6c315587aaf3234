import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { float32Of } from "../../../src/common/bytes.ts";
import { openCheckpoint, verifyCheckpoint } from "../../../src/formats/checkpoint.ts";
import { writeCheckpoint } from "../../../src/formats/checkpoint-writer.ts";
import { openSafetensors, readFloat32, readTensor } from "../../../src/formats/safetensors.ts";
import { storedTensors } from "../../../src/models/experts.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import { distance } from "../../support/models/distance.ts";
import { FAMILY_RUNS } from "../../support/models/golden.ts";
import { lastLogits, meanLossBatch, oneSequence, wholeModel } from "../../support/models/one-engine.ts";
import { readJson, temporaryFolder } from "../../support/processes/cli.ts";
import { fixture, shared } from "../../unit/shared-data.ts";

/** What first_grads.safetensors calls a matrix. */
function gradientKey(name: string): string {
  if (name.endsWith(".lora_magnitude_vector")) return `${name}.weight`;
  return /^(lm_head|model\.embed_tokens)\.weight$/.test(name)
    ? name.replace(".weight", ".modules_to_save.weight")
    : name;
}

const NF4 = { method: "4bit", dtype: "float32", quantType: "nf4", doubleQuant: true, blockSize: 64 } as const;

for (const { name, hold, loss: closeLoss, rest } of [
  { name: "qwen1", hold: null, loss: 1e-5, rest: 1e-4 },
  { name: "qwen2-gqa-tied", hold: null, loss: 1e-5, rest: 1e-4 },
  ...[...FAMILY_RUNS, "label-smoothing", "lora-plus", "dora", "modules-to-save", "lora-embeddings"].map((name) => ({
    name,
    hold: null,
    loss: 1e-5,
    rest: 1e-4,
  })),
  { name: "qwen1-nf4", hold: NF4, loss: 1e-4, rest: 1e-3 },
]) {
  test(`${name}: first loss, logits and every gradient of the first batch`, async () => {
    const folder = fixture(`goldens/${name}`);
    const { first } = readJson<{ first: { loss: number; logits_row0_last: number[] } }>(folder, "expected.json");
    const rows = readFileSync(join(folder, "data.jsonl"), "utf8")
      .trim()
      .split("\n")
      .slice(0, 4)
      .map((line) => JSON.parse(line) as { input_ids: number[]; labels: number[] });
    const engine = await wholeModel(join(folder, "model"), join(folder, "adapter_init"), hold);
    const { lossSum } = await engine.forward(0, meanLossBatch(rows, true), null);
    assert.ok(Math.abs(lossSum - first.loss) / first.loss < closeLoss, `loss ${lossSum}, expected ${first.loss}`);
    await engine.backward(0, 0, null);
    const gradients = await openSafetensors(join(folder, "first_grads.safetensors"));
    const squares = await engine.gradSquares();
    const names = await engine.matrixNames();
    assert.equal(names.length, gradients.tensors.size);
    for (const [index, name] of names.entries()) {
      const expected = await readFloat32(gradients.tensors.get(gradientKey(name))!);
      const got = await engine.getMatrix(name, "grad");
      // B is zero at first, so A's gradient is too.
      if (expected.every((value) => value === 0))
        assert.ok(
          got.every((value) => value === 0),
          name,
        );
      else assert.ok(distance(got, expected) < rest, `${name}: ${distance(got, expected)}`);
      const square = got.reduce((sum, value) => sum + value * value, 0);
      assert.ok(Math.abs(squares[index]! - square) <= 1e-6 * square, name);
    }
    assert.ok(distance(await lastLogits(engine, rows[0]!.input_ids), first.logits_row0_last) < rest);
    await engine.close();
  });
}

/** How a checkpoint with a vision tower names the text model's tensors and the tower. */
interface Tower {
  readonly family: string;
  /** The run whose model stands for the text model; absent: the family's. */
  readonly golden?: string;
  /** text_config's model_type; absent: the run's. */
  readonly text?: string;
  readonly place: (name: string) => string;
  readonly tower: string;
}
const TOWERS: readonly Tower[] = [
  { family: "gemma3", place: (name: string) => `language_model.${name}`, tower: "vision_tower" },
  {
    family: "gemma3",
    place: (name: string) => name.replace("model.", "model.language_model."),
    tower: "model.vision_tower",
  },
  { family: "llama4", place: (name: string) => `language_model.${name}`, tower: "vision_model" },
  {
    ...{ family: "qwen2_5_vl", golden: "qwen2-gqa-tied", text: "qwen2_5_vl_text" },
    ...{ place: (name: string) => name, tower: "visual" },
  },
];

test("the text model of a checkpoint with a vision tower: the same logits, the tower left out", async (t) => {
  const ids = [3, 50, 7, 99, 12, 4, 4, 80, 31, 9, 2, 6];
  for (const { family, golden = family, text: model_type, place, tower } of TOWERS) {
    const folder = fixture(`goldens/${golden}/model`);
    const plain = await wholeModel(folder, null);
    const expected = await lastLogits(plain, ids);
    await plain.close();
    const checkpoint = await openCheckpoint(folder);
    const dir = temporaryFolder(t);
    const text = checkpoint.names.map((name) => {
      const location = checkpoint.locate(name);
      return { name: place(name), dtype: location.dtype, shape: location.shape, data: () => readTensor(location) };
    });
    const patch = new Uint8Array(16);
    const vision = [{ name: `${tower}.patch`, dtype: "float32" as const, shape: [4], data: async () => patch }];
    await writeCheckpoint(dir, [...text, ...vision]);
    const text_config = readJson<Record<string, unknown>>(folder, "config.json");
    if (model_type !== undefined) Object.assign(text_config, { model_type });
    writeFileSync(join(dir, "config.json"), JSON.stringify({ model_type: family, text_config, vision_config: {} }));
    const spec = await readModelSpec(dir);
    assert.match(spec.architecture, /^(Gemma3|Llama4|Qwen2_5_VL)ForConditionalGeneration$/);
    // Merged files are named as the checkpoint's: transformers reads Llama 4's under language_model.model.
    const files = await openCheckpoint(dir, spec);
    const apart = { ...spec, tensors: storedTensors(spec, files.has) };
    assert.equal(verifyCheckpoint(apart, files), 1);
    if (family === "llama4") assert.ok(files.has("language_model.model.layers.1.feed_forward.experts.down_proj"));
    const engine = await wholeModel(dir, null);
    assert.deepEqual(await lastLogits(engine, ids), expected);
    await engine.close();
  }
});

test("keys and values in a cache give what whole sequences give, bit for bit or nearly", async () => {
  for (const name of FAMILY_RUNS) {
    const engine = await wholeModel(join(fixture(`goldens/${name}`), "model"), null);
    const ids = Array.from({ length: 23 }, (_, i) => (i * 37 + 11) % 160);
    const cache = await engine.createCache(1, ids.length);
    let done = 0;
    for (const count of [5, 1, 1, 9, 1, 6]) {
      const piece = Int32Array.from(ids.slice(done, done + count));
      const logits = await engine.infer(0, cache, oneSequence(done, count, 5), piece, null);
      const values = float32Of(await engine.read(logits));
      logits.free();
      done += count;
      assert.ok(distance(values, await lastLogits(engine, ids.slice(0, done))) < 1e-5, `${name} at ${done}`);
    }
    await engine.freeCache(cache);
    await engine.close();
  }
});

test("Qwen (v1) past its training length: dynamic NTK and log-n attention", async () => {
  const folder = fixture("goldens/qwen1-long");
  const engine = await wholeModel(join(folder, "model"), null);
  const cases = readJson<{ input_ids: number[]; last_logits: number[] }[]>(folder, "expected.json");
  assert.ok(cases.length > 0);
  for (const { input_ids, last_logits } of cases) {
    const far = distance(await lastLogits(engine, input_ids), last_logits);
    assert.ok(far < 1e-4, `${input_ids.length} tokens: ${far}`);
  }
  await engine.close();
});

const stories = shared("data/stories260k");

test("a trained Llama: logits of stories260k", { skip: stories === null }, async () => {
  const engine = await wholeModel(stories!, null);
  const { input_ids, last_logits } = readJson<{ input_ids: number[]; last_logits: number[] }>(
    shared("goldens/inference/stories260k.json")!,
  );
  assert.ok(distance(await lastLogits(engine, input_ids), last_logits) < 1e-4);
  await engine.close();
});
