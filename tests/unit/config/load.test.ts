import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { loadConfig } from "../../../src/config/load.ts";
import { temporaryFolder } from "../../support/cli.ts";

const needed = { model: "m", dataset: "d", output_dir: "o" };

async function problem(flags: Record<string, string | boolean>): Promise<string> {
  try {
    await loadConfig("train", { ...needed, ...flags });
  } catch (error) {
    assert.equal((error as PipeloraError).code, "PL_CONFIG_INVALID");
    return (error as PipeloraError).message;
  }
  throw new Error("nothing was refused");
}

test("defaults are those of TrainingArguments and LoraConfig", async () => {
  const config = await loadConfig("train", needed);
  assert.equal(config.per_device_train_batch_size, 8);
  assert.equal(config.num_train_epochs, 3);
  assert.equal(config.learning_rate, 5e-5);
  assert.equal(config.lora_r, 8);
  assert.equal(config.max_grad_norm, 1);
  assert.equal(config.seed, 42);
});

test("flags win over the YAML file, whose keys are in snake_case", async (t) => {
  const path = join(temporaryFolder(t), "run.yaml");
  writeFileSync(path, "model: a\ndataset: b\noutput_dir: c\nlora_r: 16\ntarget_modules: [w1, w2]\nmax_new_tokens: 5\n");
  const config = await loadConfig("train", { config: path, lora_r: "4", lora_dropout: "0.1" });
  assert.deepEqual([config.model, config.lora_r, config.lora_dropout], ["a", 4, 0.1]);
  assert.deepEqual(config.target_modules, ["w1", "w2"]);
});

test("lists, JSON and booleans are parsed", async () => {
  const config = await loadConfig("train", {
    ...needed,
    target_modules: "c_attn,w1",
    max_memory: '{"0": "1GiB"}',
    gradient_checkpointing: true,
    resume_from_checkpoint: "x/checkpoint-3",
    use_rslora: "False",
  });
  assert.deepEqual(config.target_modules, ["c_attn", "w1"]);
  assert.deepEqual(config.max_memory, { "0": "1GiB" });
  assert.equal(config.gradient_checkpointing, true);
  assert.equal(config.resume_from_checkpoint, "x/checkpoint-3");
  assert.equal(config.use_rslora, false);
});

test("every problem is named at once, with a suggestion for a typo", async () => {
  const message = await problem({ lora_rr: "8", learning_rate: "fast", lora_dropout: "1.5" });
  assert.match(message, /unknown flag --lora-rr; did you mean --lora-r\?/);
  assert.match(message, /--learning-rate: expected a number, got "fast"/);
  assert.match(message, /--lora-dropout/);
});

test("contradictions are refused", async () => {
  assert.match(await problem({ adapter: "a", lora_r: "8" }), /--lora-r contradicts --adapter/);
  assert.match(await problem({ eval_strategy: "steps" }), /--eval-strategy needs/);
  assert.match(await problem({ nnodes: "2" }), /--nnodes above 1 needs --listen/);
  assert.match(await problem({ lr_scheduler_type: "constant", warmup_steps: "5" }), /constant has no warm-up/);
});

test("nothing listens beyond loopback in plain text unasked", async () => {
  assert.match(await problem({ listen: "0.0.0.0:7000" }), /0\.0\.0\.0:7000 is beyond loopback.*--insecure/);
  await loadConfig("train", { ...needed, listen: "0.0.0.0:7000", insecure: true });
  await loadConfig("train", { ...needed, listen: "127.0.0.1:7000" });
  await assert.rejects(loadConfig("worker", { coordinator: "10.0.0.1:7000" }), /beyond loopback/);
});

test("what a command needs is asked for", async () => {
  await assert.rejects(
    loadConfig("train", {}),
    /--model is required.*\n.*--dataset is required.*\n.*--output-dir is required/,
  );
});

test("a number of epochs that no run could finish is refused", async () => {
  assert.match(await problem({ num_train_epochs: "1e300" }), /num.train.epochs/);
});
