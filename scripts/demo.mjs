// The main job end to end, small: makes a Qwen-shaped model and its tokenizer, plans a placement over several worker
// processes, trains LoRA through a gRPC pipeline, saves the adapter, and asks the model before and after.
import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { fail, prepare, readJson, root } from "./lib.mjs";

prepare();

const source = join(root, "examples", "demo");
const folder = join(root, "output", "demo");
const model = join(folder, "model");
const dataset = join(source, "data.jsonl");
const system = "You explain this trainer in one sentence.";
const question = "What is LoRA?";

function say(text) {
  process.stdout.write(`\n── ${text}\n`);
}

function coordinator(...args) {
  const shown = args.map((arg) => (arg.startsWith(root) ? relative(root, arg) : arg));
  process.stdout.write(`$ coordinator ${shown.map((arg) => (/[\s?]/.test(arg) ? `"${arg}"` : arg)).join(" ")}\n`);
  const command = join(root, "dist", "cli", "coordinator.js");
  const result = spawnSync(process.execPath, [command, ...args], { cwd: root, stdio: "inherit" });
  if (result.status !== 0) fail(`the demo stopped: coordinator exited with ${result.status ?? result.signal}`);
}

rmSync(folder, { recursive: true, force: true });
mkdirSync(model, { recursive: true });

say("A small Qwen-shaped model of random weights, and a tokenizer learnt from the sample rows");
const config = join(source, "config.json");
const { trainBpe } = await import(join(root, "dist", "formats", "tokenizer", "train-bpe.js"));
const rows = readFileSync(dataset, "utf8")
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line));
const texts = rows.flatMap((row) => [`system\n${system}`, `user\n${row.instruction}`, `assistant\n${row.output}\n`]);
const vocabulary = trainBpe(texts, readJson(config).vocab_size);
writeFileSync(join(model, "qwen.tiktoken"), vocabulary);
writeFileSync(
  join(model, "tokenizer_config.json"),
  JSON.stringify({ tokenizer_class: "QWenTokenizer", model_max_length: 512 }),
);
coordinator("init-model", "--config", config, "--seed", "0", "--output-dir", model);

const ask = [
  ...["--model", model, "--workers", "3", "--system", system, "--prompt", question],
  ...["--max-new-tokens", "40", "--log-level", "warn"],
];
say("A reply before training");
coordinator("generate", ...ask);

say("Training over three worker processes");
const adapter = join(folder, "adapter");
coordinator(
  ...["--model", model, "--dataset", dataset, "--system", system, "--device-map", "balanced_low_0", "--workers", "3"],
  ...["--target-modules", "c_attn,c_proj,w1,w2,lm_head", "--lora-r", "32", "--lora-alpha", "64"],
  ...["--per-device-train-batch-size", "7", "--gradient-accumulation-steps", "2", "--num-train-epochs", "20"],
  ...["--learning-rate", "4e-3", "--lr-scheduler-type", "cosine", "--warmup-steps", "5"],
  ...["--logging-steps", "6", "--save-steps", "30", "--output-dir", adapter],
);

say("The adapter, as peft reads it");
process.stdout.write(`${readdirSync(adapter).sort().join("\n")}\n`);

say("The same question after training");
coordinator("generate", ...ask, "--adapter", adapter);
