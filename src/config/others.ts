/** What another trainer's key means here: the settings it becomes, and what is to be said of it. */
export interface Counterpart {
  /** Empty: nothing needs to be, or can be, set. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Why a key is left out, or what to check; null: the settings say everything. */
  readonly remark: string | null;
  /** Whether what was asked for is not done. */
  readonly lost: boolean;
}

/**
 * Keys of LLaMA-Factory, Axolotl, TRL and transformers that mean one of ours, with the same values. A similar spelling would lead to
 * a wrong neighbour for many of them.
 */
const NAMES: Readonly<Record<string, string>> = {
  model_name_or_path: "model",
  base_model: "model",
  base_model_name_or_path: "model",
  dataset_name: "dataset",
  adapter_name_or_path: "adapter",
  lora_model_dir: "adapter",
  cutoff_len: "max_length",
  sequence_len: "max_length",
  max_seq_length: "max_length",
  max_seq_len: "max_length",
  lora_rank: "lora_r",
  lora_target_modules: "target_modules",
  lora_target_parameters: "target_parameters",
  additional_target: "modules_to_save",
  lora_modules_to_save: "modules_to_save",
  peft_use_dora: "use_dora",
  peft_use_rslora: "use_rslora",
  peft_layers_to_transform: "layers_to_transform",
  peft_layers_pattern: "layers_pattern",
  peft_init_lora_weights: "init_lora_weights",
  peft_trainable_token_indices: "trainable_token_indices",
  double_quantization: "bnb_4bit_use_double_quant",
  use_bnb_nested_quant: "bnb_4bit_use_double_quant",
  bnb_4bit_quant: "bnb_4bit_quant_type",
  quantization_type: "bnb_4bit_quant_type",
  val_size: "validation_split",
  val_set_size: "validation_split",
  num_epochs: "num_train_epochs",
  epochs: "num_train_epochs",
  micro_batch_size: "per_device_train_batch_size",
  eval_batch_size: "per_device_eval_batch_size",
  lr_scheduler: "lr_scheduler_type",
  optimizer: "optim",
  lr: "learning_rate",
  default_system: "system",
  system_prompt: "system",
  overwrite_output: "overwrite_output_dir",
  early_stopping_steps: "early_stopping_patience",
  evaluation_strategy: "eval_strategy",
  noisy_embedding_alpha: "neftune_noise_alpha",
};
const DONE_ANYWAY: Readonly<Record<string, string>> = {
  packing: "rows are concatenated without padding as it is",
  sample_packing: "rows are concatenated without padding as it is",
  pad_to_sequence_len: "no padding is computed",
  assistant_only_loss: "the assistant's turns alone are trained on",
  completion_only_loss: "the assistant's turns alone are trained on",
  stage: "supervised fine-tuning is what is done",
  do_train: "training is what is done",
  finetuning_type: "LoRA is what is trained",
  use_peft: "LoRA is what is trained",
  flash_attn: "attention keeps no score matrix as it is",
  flash_attention: "attention keeps no score matrix as it is",
  ddp_timeout: "lost workers are noticed within seconds",
  trust_remote_code: "no code of a checkpoint is ever run",
  remove_unused_columns: "other columns are left alone",
  preprocessing_num_workers: "rows are encoded as they are read",
  dataset_num_proc: "rows are encoded as they are read",
  dataloader_num_workers: "the next step's rows are prepared beside the last",
  overwrite_cache: "nothing is cached",
  eos_token: "the template's own end token is trained on",
};
const NOT_OFFERED = ["deepspeed", "fsdp", "hub_model_id", "push_to_hub"];

const becomes = (settings: Readonly<Record<string, unknown>>, remark: string | null = null): Counterpart => ({
  settings,
  remark,
  lost: false,
});
const leftOut = (remark: string): Counterpart => ({ settings: {}, remark, lost: false });
const notOffered = (why: string | null = null): Counterpart => ({ settings: {}, remark: why, lost: true });
const BEGINS = "init_lora_weights says how A and B begin";
const TURNS = "the assistant's turns alone are trained on";

/** Keys whose values mean something else here. */
const TRANSLATED: Readonly<Record<string, (value: unknown) => Counterpart>> = {
  lora_target: (value) => becomes({ target_modules: value === "all" ? "all-linear" : value }),
  lora_target_linear: (value) =>
    isFalse(value) ? leftOut("name the modules in target_modules") : becomes({ target_modules: "all-linear" }),
  pissa_init: (value) =>
    isFalse(value) ? leftOut(BEGINS) : becomes({ init_lora_weights: "pissa_niter_16" }, "LLaMA-Factory's 16 rounds"),
  pissa_iter: () => leftOut("init_lora_weights: pissa_niter_N says it, pissa the exact one"),
  quantization_bit: (value) => becomes({ [`load_in_${value === 8 ? 8 : 4}bit`]: true }),
  bf16: (value) => halfPrecision("bfloat16", value),
  fp16: (value) => halfPrecision("float16", value),
  train_on_inputs: (value) => (value === true ? notOffered(TURNS) : leftOut(TURNS)),
  // Stages that are not supervised fine-tuning and methods that are not LoRA: the whole file is refused.
  stage: (value) => (value === "sft" ? leftOut(DONE_ANYWAY["stage"]!) : notOffered(DONE_ANYWAY["stage"])),
  finetuning_type: (value) =>
    value === "lora" ? leftOut(DONE_ANYWAY["finetuning_type"]!) : notOffered(DONE_ANYWAY["finetuning_type"]),
  use_tensorboard: (value) => tracker("tensorboard", value),
  use_mlflow: (value) => tracker("mlflow", value),
  mlflow_tracking_uri: () => leftOut("the environment says it, in MLFLOW_TRACKING_URI"),
  mlflow_experiment_name: () => leftOut("the environment says it, in MLFLOW_EXPERIMENT_NAME"),
  use_peft: (value) => (isFalse(value) ? notOffered(DONE_ANYWAY["use_peft"]) : leftOut(DONE_ANYWAY["use_peft"]!)),
  datasets: (value) => becomes({ dataset: Array.isArray(value) ? value.map(dataset) : value }),
};

/** As YAML 1.1 writes it too. */
const isFalse = (value: unknown) => value === false || /^(no|off|false)$/i.test(String(value));

function halfPrecision(dtype: string, value: unknown): Counterpart {
  if (isFalse(value)) return leftOut("compute_dtype says it");
  return becomes({ compute_dtype: dtype, torch_dtype: dtype });
}

function tracker(name: string, value: unknown): Counterpart {
  return isFalse(value) ? leftOut("report_to says it") : becomes({ report_to: name });
}

/** One of Axolotl's `datasets`: its path; what says how a row is read is found out here. */
function dataset(entry: unknown): unknown {
  return typeof entry === "object" && entry !== null && "path" in entry ? entry.path : entry;
}

/** The meaning of another trainer's key here; null for an unknown key. `value`: as in the file. */
export function counterpart(key: string, value: unknown): Counterpart | null {
  if (Object.hasOwn(NAMES, key)) return becomes({ [NAMES[key]!]: value });
  if (Object.hasOwn(TRANSLATED, key)) return TRANSLATED[key]!(value);
  if (Object.hasOwn(DONE_ANYWAY, key)) return leftOut(DONE_ANYWAY[key]!);
  return NOT_OFFERED.includes(key) ? notOffered() : null;
}

/** The same, as the end of a sentence that begins with the key. */
export function counterpartText(key: string, value: unknown): string | null {
  const found = counterpart(key, value);
  if (found === null) return null;
  const [[own, setting] = [], ...more] = Object.entries(found.settings);
  if (own !== undefined) {
    const said = setting === value || typeof setting === "object" ? own : `${own}: ${String(setting)}`;
    return `; here it is "${said}"${more.map(([other]) => ` (and ${other})`).join("")}`;
  }
  const why = found.remark === null ? "" : `: ${found.remark}`;
  return found.lost ? `; it is not offered${why}` : `; leave it out${why}`;
}
