import { z } from "zod";
import { COMMANDS, type Command, type FlagKind, type Option, type OptionGroup } from "./option.ts";

/**
 * Every flag of every command: type, default, help. Flags, YAML keys, --help and docs/reference/flags.md all come from
 * this table. Names are those of TrainingArguments, LoraConfig, BitsAndBytesConfig and from_pretrained.
 */
const RUNS: readonly Command[] = ["train", "plan", "parameters", "generate", "chat"];
const TRAINS: readonly Command[] = ["train", "plan"];
const SAMPLES: readonly Command[] = ["generate", "chat"];
const MODELS: readonly Command[] = [...RUNS, "merge", "quantize", "tokenize"];
const QUANTIZES: readonly Command[] = [...RUNS, "merge", "quantize"];

const PLACEHOLDERS: Record<FlagKind, string> = {
  string: "TEXT",
  integer: "N",
  number: "X",
  boolean: "",
  list: "A,B,…",
  json: "JSON",
  "boolean-or-string": "[VALUE]",
};

function option<T extends z.ZodType>(
  kind: FlagKind,
  group: OptionGroup,
  commands: readonly Command[],
  schema: T,
  help: string,
  placeholder: string = PLACEHOLDERS[kind],
): Option<T> {
  return { kind, group, commands, schema, help, placeholder };
}

const choice = <const V extends readonly [string, ...string[]]>(values: V) => z.enum(values);
const positive = z.number().int().positive();
const count = z.number().int().nonnegative();
const ratio = z.number().min(0).max(1);
const text = z.string().min(1);
const names = z.array(text).min(1);
/** A list of which the command line may give a single entry. */
const oneOrMore = z.union([names, text.transform((one) => [one])]);
const optional = <T extends z.ZodType>(schema: T) => schema.nullable().default(null);
const flag = (value = false) => z.boolean().default(value);

const DTYPES = ["auto", "float32", "float16", "bfloat16"] as const;
const STRATEGIES = ["no", "steps", "epoch"] as const;

const modelOptions = {
  model: option(
    "string",
    "Model",
    MODELS,
    optional(text),
    "Folder of the base model (config.json, safetensors, tokenizer).",
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

const quantisationOptions = {
  load_in_4bit: option(
    "boolean",
    "Quantisation",
    QUANTIZES,
    flag(),
    "Hold the blocks' linear weights in 4 bits, quantised while loading.",
  ),
  load_in_8bit: option(
    "boolean",
    "Quantisation",
    QUANTIZES,
    flag(),
    "Hold the blocks' linear weights in 8 bits (LLM.int8()), quantised while loading.",
  ),
  bnb_4bit_quant_type: option(
    "string",
    "Quantisation",
    QUANTIZES,
    choice(["fp4", "nf4"]).default("fp4"),
    "The 4-bit code; nf4 is the better one for trained weights.",
    "NAME",
  ),
  bnb_4bit_use_double_quant: option(
    "boolean",
    "Quantisation",
    QUANTIZES,
    flag(),
    "Quantise the 4-bit blocks' scales too.",
  ),
  bnb_4bit_compute_dtype: option(
    "string",
    "Quantisation",
    QUANTIZES,
    optional(choice(["float32", "float16", "bfloat16"])),
    "dtype of products and activations of a 4-bit base (compute_dtype decides where both are given); none: as without.",
    "DTYPE",
  ),
  llm_int8_threshold: option(
    "number",
    "Quantisation",
    QUANTIZES,
    z.number().nonnegative().default(6),
    "Columns of an 8-bit layer's input with a magnitude of at least this stay in floating point; 0: none.",
  ),
  llm_int8_skip_modules: option(
    "list",
    "Quantisation",
    QUANTIZES,
    optional(oneOrMore),
    "Linear layers that stay unquantised in either form: beginnings (regular expressions), ends or parts of their names; the output head always does.",
  ),
};

const loraOptions = {
  target_modules: option(
    "list",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(z.union([names, text])),
    "Linear layers that get LoRA: names or suffixes, one regular expression, or all-linear; none: all-linear.",
  ),
  exclude_modules: option(
    "list",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(z.union([names, text])),
    "Layers left out again: names or suffixes, or one regular expression.",
  ),
  lora_r: option("integer", "LoRA", ["train", "plan", "parameters"], positive.default(8), "Rank of the adapters."),
  lora_alpha: option(
    "number",
    "LoRA",
    ["train", "plan", "parameters"],
    z.number().positive().default(8),
    "Numerator of the scaling alpha / r.",
  ),
  lora_dropout: option(
    "number",
    "LoRA",
    ["train", "plan", "parameters"],
    z.number().min(0).lt(1).default(0),
    "Dropout on the input of lora_A in training.",
  ),
  use_rslora: option("boolean", "LoRA", ["train", "plan", "parameters"], flag(), "Scale by alpha / sqrt(r)."),
  init_lora_weights: option(
    "boolean-or-string",
    "LoRA",
    ["train"],
    z.union([z.boolean(), z.literal("gaussian")]).default(true),
    "true: kaiming-uniform A and zero B; gaussian: normal A of deviation 1 / r and zero B; false: B random too.",
  ),
  layers_to_transform: option(
    "json",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(z.union([count, z.array(count).min(1)])),
    "Block numbers that get LoRA; none: all.",
  ),
  layers_pattern: option(
    "list",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(z.union([names, text])),
    "Name of the module list that layers_to_transform counts in.",
  ),
  rank_pattern: option(
    "json",
    "LoRA",
    ["train", "plan", "parameters"],
    z.record(z.string(), positive).default({}),
    "Ranks of single layers: {name or pattern: r}.",
  ),
  alpha_pattern: option(
    "json",
    "LoRA",
    ["train", "plan", "parameters"],
    z.record(z.string(), z.number().positive()).default({}),
    "alpha of single layers: {name or pattern: alpha}.",
  ),
};

const dataOptions = {
  dataset: option(
    "string",
    "Data",
    ["train", "plan"],
    optional(text),
    "Training rows: JSON, JSONL, CSV or Parquet.",
    "FILE",
  ),
  eval_dataset: option("string", "Data", ["train"], optional(text), "Rows to evaluate on.", "FILE"),
  validation_split: option(
    "number",
    "Data",
    ["train"],
    ratio.default(0),
    "Share of the training rows held out for evaluation when no --eval-dataset is given.",
    "SHARE",
  ),
  max_length: option(
    "integer",
    "Data",
    ["train", "plan", "tokenize"],
    positive.default(384),
    "Rows are cut to this many tokens.",
  ),
  system: option(
    "string",
    "Data",
    ["train", "plan", "tokenize", "generate", "chat"],
    optional(z.string()),
    "System line; none: the template's own.",
  ),
  template: option(
    "string",
    "Data",
    ["train", "plan", "tokenize", "generate", "chat"],
    choice(["auto", "tutorial", "chat"]).default("auto"),
    "How rows become text: tutorial (ChatML as Qwen's tutorials encode it) or chat (the tokenizer's chat_template); auto: tutorial for Qwen (v1), else chat.",
    "NAME",
  ),
};

const trainingOptions = {
  per_device_train_batch_size: option(
    "integer",
    "Training",
    TRAINS,
    positive.default(8),
    "Rows of a batch, of each replica.",
  ),
  per_device_eval_batch_size: option(
    "integer",
    "Training",
    ["train"],
    positive.default(8),
    "Rows of an evaluation batch.",
  ),
  gradient_accumulation_steps: option(
    "integer",
    "Training",
    TRAINS,
    positive.default(1),
    "Batches of an optimizer step.",
  ),
  num_train_epochs: option("number", "Training", TRAINS, z.number().positive().default(3), "Passes over the rows."),
  max_steps: option(
    "integer",
    "Training",
    TRAINS,
    z.number().int().min(-1).default(-1),
    "Optimizer steps; overrides epochs when positive.",
  ),
  learning_rate: option("number", "Training", TRAINS, z.number().nonnegative().default(5e-5), "Peak learning rate."),
  lr_scheduler_type: option(
    "string",
    "Training",
    ["train"],
    choice(["linear", "cosine", "constant", "constant_with_warmup"]).default("linear"),
    "Schedule of the learning rate.",
    "NAME",
  ),
  warmup_steps: option(
    "number",
    "Training",
    ["train"],
    z.number().nonnegative().default(0),
    "Steps of linear warm-up; below 1: a share of all steps.",
  ),
  warmup_ratio: option(
    "number",
    "Training",
    ["train"],
    ratio.default(0),
    "Warm-up as a share of all steps; warmup_steps wins.",
  ),
  optim: option(
    "string",
    "Training",
    ["train"],
    choice(["adamw_torch", "adamw_torch_fused"]).default("adamw_torch"),
    "Optimizer: AdamW in float32 (both names).",
    "NAME",
  ),
  weight_decay: option("number", "Training", ["train"], z.number().nonnegative().default(0), "Decoupled weight decay."),
  adam_beta1: option("number", "Training", ["train"], z.number().min(0).lt(1).default(0.9), "AdamW's beta1."),
  adam_beta2: option("number", "Training", ["train"], z.number().min(0).lt(1).default(0.999), "AdamW's beta2."),
  adam_epsilon: option("number", "Training", ["train"], z.number().positive().default(1e-8), "AdamW's epsilon."),
  max_grad_norm: option(
    "number",
    "Training",
    ["train"],
    z.number().nonnegative().default(1),
    "Global clipping norm; 0: none.",
  ),
  seed: option(
    "integer",
    "Training",
    [...RUNS, "init-model"],
    count.default(42),
    "Seed of adapters, order, dropout and sampling.",
  ),
  data_seed: option("integer", "Training", ["train"], optional(count), "Seed of the rows' order; none: seed."),
  gradient_checkpointing: option(
    "boolean",
    "Training",
    TRAINS,
    flag(),
    "Keep only each block's input and compute the rest again.",
  ),
  train_sampling_strategy: option(
    "string",
    "Training",
    ["train"],
    choice(["random", "sequential"]).default("random"),
    "Order of the rows in an epoch.",
    "NAME",
  ),
  dataloader_drop_last: option(
    "boolean",
    "Training",
    ["train"],
    flag(),
    "Leave out the last incomplete batch of an epoch.",
  ),
};

const savingOptions = {
  output_dir: option(
    "string",
    "Logging and saving",
    ["train", "merge", "quantize", "init-model"],
    optional(text),
    "Folder for the adapter, checkpoints and logs.",
    "DIR",
  ),
  overwrite_output_dir: option(
    "boolean",
    "Logging and saving",
    ["train"],
    flag(),
    "Start anew in a folder that holds checkpoints.",
  ),
  logging_strategy: option(
    "string",
    "Logging and saving",
    ["train"],
    choice(STRATEGIES).default("steps"),
    "When to log.",
    "WHEN",
  ),
  logging_steps: option(
    "integer",
    "Logging and saving",
    ["train"],
    positive.default(500),
    "Steps between log entries.",
  ),
  logging_first_step: option("boolean", "Logging and saving", ["train"], flag(), "Log the first step too."),
  eval_strategy: option(
    "string",
    "Logging and saving",
    ["train"],
    choice(STRATEGIES).default("no"),
    "When to evaluate.",
    "WHEN",
  ),
  eval_steps: option(
    "integer",
    "Logging and saving",
    ["train"],
    optional(positive),
    "Steps between evaluations; none: logging_steps.",
  ),
  save_strategy: option(
    "string",
    "Logging and saving",
    ["train"],
    choice(STRATEGIES).default("steps"),
    "When to save.",
    "WHEN",
  ),
  save_steps: option("integer", "Logging and saving", ["train"], positive.default(500), "Steps between checkpoints."),
  save_total_limit: option(
    "integer",
    "Logging and saving",
    ["train"],
    optional(positive),
    "Checkpoints kept; older ones are deleted.",
  ),
  save_only_model: option(
    "boolean",
    "Logging and saving",
    ["train"],
    flag(),
    "Leave optimizer and scheduler out of checkpoints.",
  ),
  save_on_each_node: option(
    "boolean",
    "Logging and saving",
    ["train"],
    flag(),
    "Every node writes checkpoints and the adapter to its own output_dir.",
  ),
  resume_from_checkpoint: option(
    "boolean-or-string",
    "Logging and saving",
    ["train"],
    optional(z.union([z.boolean(), text])),
    "Continue from this checkpoint folder; without a value: from the newest complete one in output_dir.",
    "[DIR]",
  ),
  report_to: option(
    "list",
    "Logging and saving",
    ["train"],
    z.union([z.array(choice(["none", "tensorboard"])), choice(["none", "tensorboard"])]).default("none"),
    "tensorboard: event files in logging_dir.",
  ),
  logging_dir: option(
    "string",
    "Logging and saving",
    ["train"],
    optional(text),
    "Folder of event files; none: output_dir/runs.",
    "DIR",
  ),
};

const placementOptions = {
  device_map: option(
    "string",
    "Placement",
    RUNS,
    z.union([z.record(z.string(), z.union([z.number().int(), z.string()])), text]).default("auto"),
    "auto, balanced, balanced_low_0, sequential, or a JSON file {module: device}.",
    "NAME|FILE",
  ),
  max_memory: option(
    "json",
    "Placement",
    RUNS,
    optional(z.record(z.string(), z.union([z.number(), z.string()]))),
    'Budgets a device: {"0": "10GiB", "1": "10GiB"}.',
  ),
  planner: option(
    "string",
    "Placement",
    RUNS,
    choice(["pipelora", "accelerate"]).default("pipelora"),
    "accelerate: exactly the map that library would make.",
    "NAME",
  ),
  schedule: option(
    "string",
    "Placement",
    TRAINS,
    choice(["1f1b", "gpipe", "sequential", "interleaved"]).default("1f1b"),
    "Order in which micro-batches run through the stages.",
    "NAME",
  ),
  micro_batch_tokens: option(
    "integer",
    "Placement",
    TRAINS,
    optional(positive),
    "Most tokens of a micro-batch; none: chosen from the batch, whatever the placement.",
  ),
};

const processOptions = {
  workers: option(
    "integer",
    "Processes",
    RUNS,
    optional(positive),
    "Local CPU workers to start when there is no GPU; none: 1.",
  ),
  threads: option(
    "integer",
    "Processes",
    [...RUNS, "worker"],
    optional(positive),
    "Threads of each CPU worker; none: its share of the cores.",
  ),
  listen: option(
    "string",
    "Processes",
    RUNS,
    optional(text),
    "Address to wait on for workers of other nodes.",
    "HOST:PORT",
  ),
  nnodes: option("integer", "Processes", RUNS, positive.default(1), "Nodes to wait for with --listen."),
  join_timeout: option(
    "number",
    "Processes",
    [...RUNS, "worker"],
    z.number().positive().default(120),
    "Seconds to wait for workers.",
    "SECONDS",
  ),
  link_timeout: option(
    "number",
    "Processes",
    RUNS,
    z.number().positive().default(300),
    "Seconds after which a tensor that a peer has not sent counts as lost.",
    "SECONDS",
  ),
  insecure: option("boolean", "Processes", [...RUNS, "worker"], flag(), "Allow plaintext beyond loopback."),
  max_restarts: option(
    "integer",
    "Processes",
    ["train"],
    count.default(3),
    "How often a run goes on from its last safe point after a worker was lost.",
  ),
  coordinator: option("string", "Processes", ["worker"], optional(text), "Address of the coordinator.", "HOST:PORT"),
  devices: option("list", "Processes", ["worker"], optional(oneOrMore), "Devices to use: cuda:0,cuda:1 or cpu."),
  node_name: option("string", "Processes", ["worker"], optional(text), "Name of this node; none: the host's.", "NAME"),
  bind: option(
    "string",
    "Processes",
    ["worker"],
    text.default("127.0.0.1"),
    "Address on which other workers reach this one.",
    "HOST",
  ),
};

const generationOptions = {
  prompt: option(
    "string",
    "Generation",
    ["generate"],
    optional(z.string()),
    "The user's message, put into the template.",
  ),
  prompt_ids: option(
    "json",
    "Generation",
    ["generate"],
    optional(z.array(count).min(1)),
    "Token ids to continue, as they are.",
  ),
  raw: option(
    "boolean",
    "Generation",
    ["generate"],
    flag(),
    "Continue the prompt's text itself, without the template.",
  ),
  max_new_tokens: option("integer", "Generation", SAMPLES, positive.default(512), "Most tokens to generate."),
  do_sample: option("boolean", "Generation", SAMPLES, flag(), "Sample; otherwise greedy."),
  temperature: option("number", "Generation", SAMPLES, z.number().positive().default(1), "Divides the logits."),
  top_p: option("number", "Generation", SAMPLES, z.number().gt(0).max(1).default(1), "Nucleus sampling."),
  top_k: option("integer", "Generation", SAMPLES, count.default(50), "Only the k likeliest tokens; 0: all."),
  repetition_penalty: option(
    "number",
    "Generation",
    SAMPLES,
    z.number().positive().default(1),
    "Above 1: seen tokens become less likely.",
  ),
  stop_ids: option(
    "json",
    "Generation",
    SAMPLES,
    optional(z.array(count)),
    "Token ids that end generation; none: the model's.",
  ),
};

const fileOptions = {
  config: option(
    "string",
    "Output",
    [...RUNS, "init-model"],
    optional(text),
    "For init-model the model's config.json, else a YAML file of these keys in snake_case.",
    "FILE",
  ),
  input: option(
    "string",
    "Data",
    ["tokenize"],
    optional(text),
    'A JSONL file of {"text"} rows, or of the rows a dataset holds.',
    "FILE",
  ),
  max_shard_size: option(
    "string",
    "Output",
    ["init-model", "merge", "quantize"],
    text.default("5GB"),
    "Largest safetensors file.",
    "SIZE",
  ),
  json: option(
    "boolean",
    "Output",
    COMMANDS.filter((command) => command !== "worker"),
    flag(),
    "Print JSON for machines.",
  ),
  log_format: option(
    "string",
    "Output",
    COMMANDS,
    choice(["text", "json"]).default("text"),
    "Lines for people, or pino JSON.",
    "FORMAT",
  ),
  log_level: option(
    "string",
    "Output",
    COMMANDS,
    choice(["debug", "info", "warn", "error", "silent"]).default("info"),
    "Least severe messages shown.",
    "LEVEL",
  ),
  disable_tqdm: option("boolean", "Output", ["train"], flag(), "No progress bar."),
};

export const OPTIONS = {
  ...modelOptions,
  ...quantisationOptions,
  ...loraOptions,
  ...dataOptions,
  ...trainingOptions,
  ...savingOptions,
  ...placementOptions,
  ...processOptions,
  ...generationOptions,
  ...fileOptions,
} satisfies Record<string, Option>;

export type OptionKey = keyof typeof OPTIONS;

/** A complete configuration: every option with its value or default. */
export type Config = { readonly [K in OptionKey]: z.infer<(typeof OPTIONS)[K]["schema"]> };

export function optionsOf(command: Command): [OptionKey, Option][] {
  return (Object.entries(OPTIONS) as [OptionKey, Option][]).filter(([, entry]) => entry.commands.includes(command));
}
