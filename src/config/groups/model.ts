import { choice, DTYPES, MODELS, option, optional, RUNS, text } from "./vocabulary.ts";

export const modelOptions = {
  model: option(
    "string",
    "Model",
    [...MODELS, "worker"],
    optional(text),
    "Folder of the base model (config.json, safetensors, tokenizer); on a worker, none: the coordinator's path.",
    "DIR",
  ),
  adapter: option(
    "string",
    "Model",
    [...RUNS, "merge"],
    optional(text),
    "A peft adapter folder to start from; its LoRA settings hold.",
    "DIR",
  ),
  torch_dtype: option(
    "string",
    "Model",
    [...RUNS, "init-model", "merge", "quantize"],
    choice(DTYPES).default("auto"),
    "dtype in which unquantised weights are held, and that others have before they are quantised; auto: the checkpoint's.",
    "DTYPE",
  ),
  compute_dtype: option(
    "string",
    "Model",
    RUNS,
    choice(DTYPES).default("auto"),
    "dtype of products and activations; auto: bnb_4bit_compute_dtype for a 4-bit base, else float32 on CPUs, on GPUs that of the weights.",
    "DTYPE",
  ),
};
