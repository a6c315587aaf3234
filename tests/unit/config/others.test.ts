import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { loadConfig } from "../../../src/config/load.ts";
import { OPTIONS } from "../../../src/config/options.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

/** A line of another trainer's file, and what must be said of its key. */
const SAID: Readonly<Record<string, string>> = {
  "model_name_or_path: x": 'here it is "model"',
  "base_model: x": 'here it is "model"',
  "dataset_name: x": 'here it is "dataset"',
  "cutoff_len: 2048": 'here it is "max_length"',
  "sequence_len: 2048": 'here it is "max_length"',
  "max_seq_length: 2048": 'here it is "max_length"',
  "lora_rank: 8": 'here it is "lora_r"',
  "lora_target: all": 'here it is "target_modules: all-linear"',
  "lora_target: q_proj": 'here it is "target_modules"',
  "lora_target_modules: all-linear": 'here it is "target_modules"',
  "lora_target_linear: true": 'here it is "target_modules: all-linear"',
  "quantization_bit: 4": 'here it is "load_in_4bit: true"',
  "quantization_bit: 8": 'here it is "load_in_8bit: true"',
  "double_quantization: true": 'here it is "bnb_4bit_use_double_quant"',
  "use_bnb_nested_quant: true": 'here it is "bnb_4bit_use_double_quant"',
  "micro_batch_size: 2": 'here it is "per_device_train_batch_size"',
  "num_epochs: 1": 'here it is "num_train_epochs"',
  "val_size: 0.1": 'here it is "validation_split"',
  "val_set_size: 0.1": 'here it is "validation_split"',
  "lr_scheduler: cosine": 'here it is "lr_scheduler_type"',
  "optimizer: adamw_8bit": 'here it is "optim"',
  "bf16: true": 'here it is "compute_dtype: bfloat16"',
  "fp16: true": 'here it is "compute_dtype: float16"',
  "packing: true": "leave it out: rows are concatenated",
  "sample_packing: true": "leave it out: rows are concatenated",
  "assistant_only_loss: true": "leave it out: the assistant's turns alone",
  "train_on_inputs: false": "leave it out: the assistant's turns alone",
  "train_on_inputs: true": "it is not offered: the assistant's turns alone",
  "stage: sft": "leave it out: supervised",
  "do_train: true": "leave it out: training",
  "finetuning_type: lora": "leave it out: LoRA",
  "use_peft: true": "leave it out: LoRA",
  "ddp_timeout: 1800": "leave it out: lost workers",
  "eos_token: </s>": "leave it out: the template's own",
  "deepspeed: ds.json": "it is not offered",
};

test("every key of another trainer is told what it is here, never a neighbour in spelling", async (t) => {
  const path = join(temporaryFolder(t), "run.yaml");
  for (const [line, said] of Object.entries(SAID)) {
    writeFileSync(path, `model: m\ndataset: d\noutput_dir: o\n${line}\n`);
    await assert.rejects(loadConfig("train", { config: path }), (error: PipeloraError) => {
      assert.equal(error.message.split("\n").length, 1, error.message);
      assert.ok(error.message.includes(said), `${line}: ${error.message}`);
      assert.doesNotMatch(error.message, /did you mean/);
      return true;
    });
  }
});

test("hints name keys that exist", () => {
  for (const said of Object.values(SAID)) {
    const name = /here it is "([^":]+)/.exec(said)?.[1];
    if (name !== undefined) assert.ok(Object.hasOwn(OPTIONS, name), name);
  }
});

test("words of YAML 1.1, one name as a list, a comma in an expression", async (t) => {
  const path = join(temporaryFolder(t), "run.yaml");
  writeFileSync(
    path,
    "model: m\ndataset: d\noutput_dir: o\noverwrite_output_dir: yes\nlogging_first_step: Off\ntarget_modules: 'q_proj,v_proj'\nsave_steps: 0.5\noptim: paged_adamw_32bit\n",
  );
  const config = await loadConfig("train", { config: path });
  assert.deepEqual([config.overwrite_output_dir, config.logging_first_step], [true, false]);
  assert.deepEqual(config.target_modules, ["q_proj", "v_proj"]);
  assert.deepEqual([config.save_steps, config.optim], [0.5, "paged_adamw_32bit"]);
  writeFileSync(path, "model: m\ndataset: d\noutput_dir: o\ntarget_modules: 'layers\\.\\d{1,2}\\.q_proj'\n");
  assert.equal((await loadConfig("train", { config: path })).target_modules, "layers\\.\\d{1,2}\\.q_proj");
});

test("what is wrong with an address is said", async () => {
  const needed = { model: "m", dataset: "d", output_dir: "o", insecure: true };
  for (const [listen, what] of [
    ["7714", "the host is missing"],
    ["http://127.0.0.1:7715", "a scheme stands before it"],
    ["::1:7704", "IPv6 stands in brackets"],
    ["127.0.0.1:99999", "the port is none"],
    ["127.0.0.1", "the port is missing"],
    ["a b:7700", "it holds a space or a slash"],
  ] as const) {
    await assert.rejects(loadConfig("train", { ...needed, listen }), (error: PipeloraError) => {
      assert.equal(error.code, "PL_CONFIG_INVALID");
      assert.ok(error.message.includes(`expected HOST:PORT`) && error.message.includes(`"${listen}": ${what}`));
      return true;
    });
  }
  assert.equal((await loadConfig("train", { ...needed, listen: "[::1]:7700" })).listen, "[::1]:7700");
});
