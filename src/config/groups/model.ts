import { HUBS } from "../../common/hubs.ts";
import { choice, DTYPES, MODELS, option, optional, RUNS, text } from "./vocabulary.ts";

export const modelOptions = {
  model: option(
    "string",
    "Model",
    [...MODELS, "worker"],
    optional(text),
    "Folder of the base model (config.json, safetensors, tokenizer), or owner/name[@revision] of a hub; on a worker, none: the coordinator's path, else its name.",
    "DIR|NAME",
  ),
  adapter: {
    ...option(
      "string",
      "Model",
      [...RUNS, "merge", "export", "push"],
      optional(text),
      "A peft adapter's folder, or owner/name[@revision] of a hub, to start from; its LoRA settings hold. For serve NAME=DIR|NAME, and again for others.",
      "DIR|NAME",
    ),
    repeats: ["serve"] as const,
  },
  hub: option(
    "string",
    "Model",
    [...MODELS, "download"],
    choice(HUBS).default("huggingface"),
    "Where names are looked up that are no path here.",
    "HUB",
  ),
  name: option(
    "string",
    "Model",
    ["download", "push"],
    optional(text),
    "What to fetch, owner/name[:split][@revision], or where to push, owner/name[@branch].",
    "NAME",
  ),
  kind: option(
    "string",
    "Model",
    ["download"],
    choice(["model", "dataset", "adapter"]).default("model"),
    "What the name stands for.",
    "KIND",
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
