import assert from "node:assert/strict";
import { cp, mkdtemp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeEach, describe, test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { DEFAULT_LORA_SETTINGS } from "../../../src/common/lora-settings.ts";
import { adapterMatrices, openAdapter, writeAdapter } from "../../../src/formats/adapter.ts";
import { adapterConfigText, parseAdapterConfig } from "../../../src/formats/adapter-config.ts";
import { initLora } from "../../../src/formats/lora-init.ts";
import { modelSpecFromConfig, readModelSpec } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { fixture, shared } from "../shared-data.ts";

const spec = modelSpecFromConfig({
  model_type: "qwen",
  hidden_size: 16,
  intermediate_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  kv_channels: 8,
  vocab_size: 20,
});
const settings = { ...DEFAULT_LORA_SETTINGS, targetModules: ["c_attn", "w1"], r: 4, alpha: 8 };
const { targets, matrices } = resolveLoraTargets(spec, settings);

let dir = "";
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "pipelora-adapter-"));
});
const write = () =>
  writeAdapter(dir, {
    settings,
    targetModules: settings.targetModules,
    baseModel: "./Qwen-7B-Chat",
    matrices,
    values: (name) => {
      const target = targets.find((one) => name.startsWith(`${one.name}.`))!;
      return initLora(target, { initLoraWeights: false }, 7)[name.includes(".lora_A.") ? "a" : "b"];
    },
  });
const editConfig = async (edit: Record<string, unknown>) => {
  const path = join(dir, "adapter_config.json");
  await writeFile(path, JSON.stringify({ ...(JSON.parse(await readFile(path, "utf8")) as object), ...edit }));
};
const fails = (message: RegExp) => (error: PipeloraError) => {
  assert.equal(error.code, "PL_ADAPTER_INVALID", error.message);
  assert.match(error.message, message);
  return true;
};

describe("adapter folders", () => {
  test("adapter_config.json is what peft writes, to the byte", async () => {
    const golden = await readFile(fixture("formats/adapter_config.json"), "utf8");
    const parsed = parseAdapterConfig("adapter_config.json", JSON.parse(golden));
    assert.deepEqual(parsed.warnings, []);
    assert.equal(adapterConfigText(parsed.settings, parsed.settings.targetModules, parsed.baseModel), golden);
  });

  test("other settings and names outside ASCII are written as Python does", () => {
    const text = adapterConfigText({ ...settings, dropout: 0.1, rankPattern: { w1: 2 } }, ".*(c_attn|w1)", "./模型");
    assert.match(text, /"lora_dropout": 0\.1,/);
    assert.match(text, /"base_model_name_or_path": "\.\/\\u6a21\\u578b"/);
    assert.match(text, /"rank_pattern": \{\n {4}"w1": 2\n {2}\}/);
    assert.match(text, /"target_modules": "\.\*\(c_attn\|w1\)"/);
  });

  test("what is written is read back", async () => {
    await write();
    const adapter = await openAdapter(dir);
    assert.deepEqual(adapter.settings, settings);
    assert.equal(adapter.baseModel, "./Qwen-7B-Chat");
    const read = adapterMatrices(adapter, matrices);
    for (const target of targets) {
      const expected = initLora(target, { initLoraWeights: false }, 7);
      assert.deepEqual(await read(`${target.name}.lora_A.weight`), expected.a);
      assert.deepEqual(await read(`${target.name}.lora_B.weight`), expected.b);
    }
    const keys = [...adapter.weights.tensors.keys()];
    assert.equal(keys[0], "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight");
    assert.match(await readFile(join(dir, "README.md"), "utf8"), /library_name: peft/);
  });

  test("unknown keys warn; settings that change the numbers are refused by name", async () => {
    await write();
    await editConfig({ brand_new: 1, eva_config: null, init_lora_weights: "eva" });
    assert.deepEqual((await openAdapter(dir)).warnings.length, 1);
    const refused: [Record<string, unknown>, RegExp][] = [
      [{ lora_bias: true }, /lora_bias/],
      [{ bias: "some" }, /"bias"/],
      [{ ensure_weight_tying: true }, /ensure_weight_tying/],
      [{ layer_replication: [[0, 1]] }, /layer_replication/],
      [{ init_lora_weights: "pissa_niter_4" }, /pissa_niter_4/],
      [{ peft_type: "IA3" }, /peft_type/],
      [{ r: -1 }, /"r"/],
      [{ target_modules: null }, /target_modules/],
    ];
    for (const [edit, message] of refused) {
      await write();
      await editConfig(edit);
      await assert.rejects(openAdapter(dir), fails(message));
    }
  });

  test("incomplete folders and adapters of another model", async () => {
    await assert.rejects(openAdapter(dir), fails(/no adapter_config\.json/));
    await writeFile(join(dir, "adapter_config.json"), "{");
    await assert.rejects(openAdapter(dir), fails(/not JSON/));
    await cp(fixture("formats/adapter_config.json"), join(dir, "adapter_config.json"));
    await assert.rejects(openAdapter(dir), fails(/adapter_model\.safetensors can't be opened/));
    await write();
    const adapter = await openAdapter(dir);
    const more = resolveLoraTargets(spec, { ...settings, targetModules: ["c_attn", "w1", "w2"] }).matrices;
    assert.throws(() => adapterMatrices(adapter, more), fails(/lacks .*w2\.lora_A/));
    const fewer = resolveLoraTargets(spec, { ...settings, targetModules: ["c_attn"] }).matrices;
    assert.throws(
      () => adapterMatrices(adapter, fewer),
      fails(/w1\.lora_A\.weight, which this adapter of this model does not train/),
    );
    const wider = resolveLoraTargets(spec, { ...settings, r: 8 }).matrices;
    assert.throws(() => adapterMatrices(adapter, wider), fails(/has shape \[4, 16\], expected \[8, 16\]/));
  });

  for (const run of ["qwen1", "qwen2-gqa-tied"]) {
    const path = shared(`goldens/training/${run}`);
    test(`peft's adapter of ${run} fits its model`, { skip: path === null }, async () => {
      const model = await readModelSpec(join(path!, "model"));
      const adapter = await openAdapter(join(path!, "adapter_final"));
      const lora = resolveLoraTargets(model, adapter.settings);
      const read = adapterMatrices(adapter, lora.matrices);
      for (const { name, shape } of lora.matrices) assert.equal((await read(name)).length, shape[0]! * shape[1]!);
    });
  }
});

describe("first values of LoRA matrices", () => {
  const target = { name: "transformer.h.0.attn.c_attn", r: 8, in: 1024, out: 2048 };
  const deviation = (values: Float32Array) =>
    Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);

  test("kaiming uniform: within ±1/√in, B zero", () => {
    const { a, b } = initLora(target, { initLoraWeights: true }, 42);
    const bound = 1 / Math.sqrt(1024);
    assert.ok(a.every((value) => Math.abs(value) <= bound));
    assert.ok(Math.abs(deviation(a) / (bound / Math.sqrt(3)) - 1) < 0.02);
    assert.ok(b.every((value) => value === 0));
  });

  test("gaussian: deviation 1 / r", () => {
    const { a, b } = initLora(target, { initLoraWeights: "gaussian" }, 42);
    assert.ok(Math.abs(deviation(a) * 8 - 1) < 0.03);
    assert.ok(b.every((value) => value === 0));
  });

  test("false: both uniform, B within ±1/√r", () => {
    const { b } = initLora(target, { initLoraWeights: false }, 42);
    assert.ok(b.every((value) => Math.abs(value) <= 1 / Math.sqrt(8)));
    assert.ok(Math.abs(deviation(b) * Math.sqrt(24) - 1) < 0.02);
  });

  test("depends on seed and name, and on nothing else", () => {
    const first = (name: string, seed: number) =>
      initLora({ ...target, name }, { initLoraWeights: true }, seed).a.slice(0, 8);
    assert.deepEqual(first("x", 1), first("x", 1));
    assert.notDeepEqual(first("x", 1), first("x", 2));
    assert.notDeepEqual(first("x", 1), first("y", 1));
    assert.notDeepEqual(first("x", 1), first("x", 1 + 2 ** 32));
    const short = initLora({ ...target, r: 1, in: 5 }, { initLoraWeights: true }, 3).a;
    assert.equal(short.length, 5);
    assert.ok(short.every((value) => value !== 0));
  });

  test("others are refused by name", () => {
    assert.throws(() => initLora(target, { initLoraWeights: "olora" }, 1), /olora/);
  });
});
