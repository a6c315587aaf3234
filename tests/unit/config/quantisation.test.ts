import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { type FlagValues, loadConfig } from "../../../src/config/load.ts";

const needed = { model: "m", dataset: "d", output_dir: "o" };
const load = (flags: FlagValues) => loadConfig("train", { ...needed, ...flags });

test("defaults are those of BitsAndBytesConfig", async () => {
  const config = await load({ load_in_4bit: true });
  assert.equal(config.load_in_8bit, false);
  assert.equal(config.bnb_4bit_quant_type, "fp4");
  assert.equal(config.bnb_4bit_use_double_quant, false);
  assert.equal(config.llm_int8_threshold, 6);
  assert.equal(config.llm_int8_skip_modules, null);
});

const CONTRADICTIONS: [FlagValues, RegExp][] = [
  [{ load_in_4bit: true, load_in_8bit: true }, /--load-in-4bit and --load-in-8bit contradict each other/],
  [{ bnb_4bit_quant_type: "nf4" }, /--bnb-4bit-quant-type acts only with --load-in-4bit/],
  [{ bnb_4bit_use_double_quant: true }, /--bnb-4bit-use-double-quant acts only with --load-in-4bit/],
  [
    { load_in_8bit: true, bnb_4bit_compute_dtype: "float16" },
    /--bnb-4bit-compute-dtype acts only with --load-in-4bit, not with --load-in-8bit/,
  ],
  [{ load_in_4bit: true, llm_int8_threshold: "5" }, /--llm-int8-threshold acts only with --load-in-8bit/],
  [{ load_in_4bit: true, bnb_4bit_quant_type: "int4" }, /--bnb-4bit-quant-type: .*got "int4"/],
  [{ load_in_8bit: true, llm_int8_threshold: "-1" }, /--llm-int8-threshold: .*got -1/],
];

for (const [flags, says] of CONTRADICTIONS) {
  test(`refused: ${JSON.stringify(flags)}`, async () => {
    await assert.rejects(load(flags), { code: "PL_CONFIG_INVALID", message: says });
  });
}

test("quantize takes the 4-bit settings without load_in_4bit: 4 bits are its default", async () => {
  const flags = { model: "m", output_dir: "o", bnb_4bit_quant_type: "nf4", llm_int8_skip_modules: "mlp,attn" };
  const config = await loadConfig("quantize", flags);
  assert.deepEqual([config.bnb_4bit_quant_type, config.llm_int8_skip_modules], ["nf4", ["mlp", "attn"]]);
});

test("the tutorial's files hold every setting of its runs", async () => {
  const load = (bits: number) =>
    loadConfig("train", { config: join(PACKAGE_ROOT, "examples", `qwen-7b-chat-${bits}bit.yaml`) });
  const [four, eight] = [await load(4), await load(8)];
  for (const config of [four, eight]) {
    assert.deepEqual(
      [config.torch_dtype, config.device_map, config.template, config.max_length],
      ["float16", "balanced_low_0", "tutorial", 384],
    );
    assert.deepEqual(config.target_modules, ["c_attn", "c_proj", "w1", "w2"]);
    assert.deepEqual([config.lora_r, config.lora_alpha, config.lora_dropout], [8, 32, 0.1]);
    assert.deepEqual([config.per_device_train_batch_size, config.gradient_accumulation_steps], [8, 2]);
    assert.deepEqual([config.num_train_epochs, config.learning_rate], [3, 1e-4]);
    assert.deepEqual([config.logging_steps, config.save_steps], [10, 100]);
    assert.deepEqual([config.gradient_checkpointing, config.save_on_each_node], [true, true]);
  }
  assert.deepEqual([four.load_in_4bit, four.load_in_8bit], [true, false]);
  assert.deepEqual(
    [four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant, four.bnb_4bit_compute_dtype],
    ["nf4", true, "float16"],
  );
  assert.deepEqual([eight.load_in_4bit, eight.load_in_8bit, eight.llm_int8_threshold], [false, true, 6]);
});
