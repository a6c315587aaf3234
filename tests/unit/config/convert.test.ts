import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { parse, stringify } from "yaml";
import { convertConfig } from "../../../src/config/convert.ts";
import { loadConfig } from "../../../src/config/load.ts";
import { coordinator, temporaryFolder } from "../../support/processes/cli.ts";

const LLAMA_FACTORY = `
model_name_or_path: org/model
stage: sft
do_train: true
finetuning_type: lora
quantization_bit: 4
lora_rank: 32
lora_target: all
dataset: a.jsonl
template: qwen
cutoff_len: 4096
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: yes
val_size: 0.1
eval_strategy: steps
eval_steps: 500
output_dir: out
plot_loss: true
`;
const AXOLOTL = `
base_model: org/model
adapter: qlora
datasets:
  - path: a.jsonl
    type: alpaca
  - path: b.parquet
sequence_len: 2048
sample_packing: true
lora_r: 16
lora_alpha: 32
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 2
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: true
bf16: auto
output_dir: ./out
`;
const TRL = `
model_name_or_path: org/model
dataset_name: owner/rows
use_peft: true
lora_target_modules: [q_proj, v_proj]
output_dir: out
neftune_noise_alpha: 5
`;

/** Keys that are said to have no counterpart or not to be offered. */
const lost = (remarks: readonly string[]) =>
  remarks.filter((remark) => /no counterpart|not offered/.test(remark)).map((remark) => remark.split(/[ :]/)[0]);

test("files of LLaMA-Factory, Axolotl and TRL become ones that load here, and what is lost is named", async (t) => {
  const cases = [
    {
      file: LLAMA_FACTORY,
      expected: { lora_r: 32, lora_alpha: 64, target_modules: "all-linear", load_in_4bit: true, max_length: 4096 },
      lost: ["plot_loss"],
    },
    {
      file: AXOLOTL,
      expected: { dataset: ["a.jsonl", "b.parquet"], load_in_4bit: true, per_device_train_batch_size: 2, lora_r: 16 },
      lost: ["train_on_inputs"],
    },
    {
      file: TRL,
      expected: {
        lora_r: 16,
        lora_alpha: 32,
        lora_dropout: 0.05,
        target_modules: ["q_proj", "v_proj"],
        neftune_noise_alpha: 5,
      },
      lost: [],
    },
  ];
  for (const { file, expected, lost: missing } of cases) {
    const converted = convertConfig(parse(file));
    for (const [key, value] of Object.entries(expected)) assert.deepEqual(converted.settings[key], value, key);
    assert.deepEqual(lost(converted.remarks), missing);
    const path = join(temporaryFolder(t), "ours.yaml");
    writeFileSync(path, stringify(converted.settings));
    const config = await loadConfig("train", { config: path });
    assert.equal(config.model, "org/model");
  }
});

test("nothing disappears: every key is a setting, or a remark names it", () => {
  for (const file of [LLAMA_FACTORY, AXOLOTL, TRL]) {
    const theirs = parse(file) as Record<string, unknown>;
    for (const [key, value] of Object.entries(theirs)) {
      const { settings, remarks } = convertConfig({ ...theirs, [key]: value });
      const { settings: without } = convertConfig(
        Object.fromEntries(Object.entries(theirs).filter(([k]) => k !== key)),
      );
      const named = remarks.some((remark) => remark.startsWith(key));
      assert.ok(named || JSON.stringify(settings) !== JSON.stringify(without), key);
    }
  }
});

test("other stages and methods are no supervised fine-tuning with LoRA", () => {
  for (const key of ["stage: dpo", "finetuning_type: full", "use_peft: no"])
    assert.deepEqual(lost(convertConfig(parse(`base_model: m\n${key}`)).remarks), [key.split(":")[0]]);
});

test("a value that is none here is said to have no counterpart; an empty key is nothing", () => {
  const { settings, remarks } = convertConfig({ base_model: "m", lr_scheduler: "linear_with_a_kink", dataset: null });
  assert.deepEqual(settings, { model: "m" });
  assert.match(remarks[0]!, /lr_scheduler "linear_with_a_kink" has no counterpart: lr_scheduler_type takes/);
});

const DATASET_INFO = {
  own: { file_name: "own.json" },
  chats: {
    file_name: "sub/chats.jsonl",
    formatting: "sharegpt",
    columns: { messages: "turns", system: "sys", tools: "tools" },
    tags: { role_tag: "role", content_tag: "content", user_tag: "user", assistant_tag: "assistant" },
  },
  hub: { hf_hub_url: "o/n", subset: "en", split: "test", num_samples: 7, columns: { prompt: "q", response: "a" } },
  scope: { ms_hub_url: "o/m" },
  texts: { file_name: "t.txt", columns: { prompt: "text" } },
  pairs: { file_name: "p.json", ranking: true, formatting: "sharegpt", columns: { chosen: "c", rejected: "r" } },
  odd: { file_name: "o.json", formatting: "sharegpt", tags: { user_tag: "asker" } },
  made: { script_url: "make.py" },
};

test("names of LLaMA-Factory's dataset_info.json become paths, hub names, columns and rows", async (t) => {
  const theirs = { stage: "sft", model_name_or_path: "m", output_dir: "o", dataset_dir: "d/", max_samples: 50 };
  const of = (dataset: string) => convertConfig({ ...theirs, dataset }, { dir: "d/", info: DATASET_INFO });
  assert.deepEqual(of("own, chats,hub").settings["dataset"], [
    { path: "d/own.json", rows: 50 },
    { path: "d/sub/chats.jsonl", columns: { messages: "turns", system: "sys" }, rows: 50 },
    { path: "o/n:en/test", columns: { instruction: "q", output: "a" }, rows: 7 },
  ]);
  assert.deepEqual(of("texts").settings["dataset"], [{ path: "d/t.txt", rows: 50 }]);
  const remark = (dataset: string) => of(dataset).remarks.join("; ");
  assert.match(remark("pairs"), /dataset pairs: its rows are refused \(chosen, rejected\)/);
  assert.match(remark("odd"), /user_tag "asker" is not understood/);
  assert.match(remark("scope"), /say hub: modelscope/);
  assert.match(remark("made"), /sets that a script makes/);
  assert.match(remark("gone"), /dataset_info.json has no such set/);
  assert.equal(of("gone").settings["dataset"], undefined);

  // What is written loads here, and finds the sets.
  const root = temporaryFolder(t);
  mkdirSync(join(root, "data"));
  writeFileSync(join(root, "data", "dataset_info.json"), JSON.stringify(DATASET_INFO));
  writeFileSync(join(root, "data", "own.json"), '[{"instruction": "q", "output": "a"}]');
  writeFileSync(join(root, "theirs.yaml"), stringify({ ...theirs, dataset: "own", dataset_dir: "data" }));
  const { code, stdout } = await coordinator(["convert-config", join(root, "theirs.yaml")]);
  assert.equal(code, 0);
  writeFileSync(join(root, "ours.yaml"), stdout);
  const config = await loadConfig("train", { config: join(root, "ours.yaml") });
  assert.deepEqual(config.dataset, [{ path: join(root, "data", "own.json"), rows: 50 }]);
});

test("Axolotl's datasets: splits, configurations, fields; what is refused or has no counterpart is named", () => {
  const of = (...datasets: unknown[]) => convertConfig({ base_model: "m", output_dir: "o", datasets });
  assert.deepEqual(
    of({ path: "a.jsonl", type: "alpaca" }, { path: "o/n", split: "test", name: "en" }).settings["dataset"],
    ["a.jsonl", "o/n:en/test"],
  );
  const mapped = of(
    { path: "a.jsonl", type: "chat_template", field_messages: "turns" },
    { path: "b.jsonl", type: { field_instruction: "q", field_output: "a", format: "[{instruction}]" } },
    { path: "c.jsonl", type: "completion", field: "content" },
    { path: "o/n", data_files: "rows.parquet", type: "chatml.intel" },
  );
  assert.deepEqual(mapped.settings["dataset"], [
    { path: "a.jsonl", columns: { messages: "turns" } },
    { path: "b.jsonl", columns: { instruction: "q", output: "a" } },
    { path: "c.jsonl", columns: { text: "content" } },
    { path: "rows.parquet" },
  ]);
  assert.match(
    mapped.remarks.join("; "),
    /b.jsonl: format has no counterpart; .*rows are refused \(type chatml.intel\)/,
  );
});

test("trackers: those that there are stay, others are named", () => {
  const reports = (theirs: Readonly<Record<string, unknown>>) => {
    const { settings, remarks } = convertConfig({ ...theirs, model: "m", dataset: "d", output_dir: "o" });
    return [settings["report_to"], remarks];
  };
  assert.deepEqual(reports({ report_to: ["mlflow", "wandb"] }), [
    "mlflow",
    ['report_to "wandb" has no counterpart; there are none, tensorboard, mlflow'],
  ]);
  assert.deepEqual(reports({ report_to: ["tensorboard", "mlflow"] }), [["tensorboard", "mlflow"], []]);
  assert.deepEqual(reports({ report_to: "none" }), ["none", []]);
  assert.deepEqual(reports({ use_mlflow: true, mlflow_tracking_uri: "http://a:1" }), [
    "mlflow",
    ["mlflow_tracking_uri: the environment says it, in MLFLOW_TRACKING_URI"],
  ]);
});
