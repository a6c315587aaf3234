import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { loadConfig } from "../../../src/config/load.ts";
import { mutatedJson, mutateText } from "../mutate.ts";
import type { FuzzTarget } from "../target.ts";

const TEXT = `model: ./Qwen-7B-Chat
dataset: huanhuan.json
load_in_4bit: true
target_modules: [c_attn, c_proj, w1, w2]
lora_r: 8
lora_alpha: 32
lora_dropout: 0.1
num_train_epochs: 3
learning_rate: 1.0e-4
max_memory: {"0": 10GiB, "1": 10GiB}
device_map: balanced_low_0
save_steps: 100
gradient_checkpointing: yes
warmup_steps: &steps 10
logging_steps: *steps
lr_scheduler_kwargs:
  num_cycles: 2
output_dir: ./output/Qwen
`;
const VALUES = {
  model: "./m",
  dataset: "d.json",
  target_modules: ["c_attn"],
  lora_r: 8,
  learning_rate: 1e-4,
  num_train_epochs: 3,
  max_steps: 10,
  max_memory: { 0: "10GiB", cpu: "1GB" },
  device_map: { "": 0 },
  save_strategy: "steps",
  eval_steps: 5,
  seed: 1,
  columns: { output: "answer" },
  output_dir: "o",
};
const BILLION = [
  "a: &a [1,1,1,1,1,1,1,1,1]",
  ..."bcdefghij".split("").map((key, at) => `${key}: &${key} [${Array(9).fill(`*${"abcdefghi"[at]}`).join(",")}]`),
];

export const yaml: FuzzTarget = {
  name: "yaml",
  make(random, dir) {
    const kind = random.below(10);
    const text =
      kind === 0
        ? mutateText(random, BILLION.slice(0, random.between(2, 10)).join("\n"))
        : kind < 6
          ? mutateText(random, TEXT)
          : mutatedJson(random, VALUES);
    writeFileSync(join(dir, "run.yaml"), text);
  },
  check: async (dir) => {
    await loadConfig("train", { config: join(dir, "run.yaml"), model: "m", dataset: "d.json", output_dir: "o" });
  },
};
