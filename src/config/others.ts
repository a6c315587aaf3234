/**
 * Keys of LLaMA-Factory, Axolotl, TRL and transformers that mean one of ours, or what is done anyway, or nothing offered. A
 * similar spelling would lead to a wrong neighbour for many of them.
 */
const NAMES: Readonly<Record<string, string>> = {
  model_name_or_path: "model",
  base_model: "model",
  base_model_name_or_path: "model",
  dataset_name: "dataset",
  datasets: "dataset",
  adapter_name_or_path: "adapter",
  lora_model_dir: "adapter",
  cutoff_len: "max_length",
  sequence_len: "max_length",
  max_seq_length: "max_length",
  max_seq_len: "max_length",
  lora_rank: "lora_r",
  lora_target_modules: "target_modules",
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
  dataloader_num_workers: "the next step's rows are prepared beside the last",
  overwrite_cache: "nothing is cached",
  eos_token: "the template's own end token is trained on",
};
const NOT_OFFERED = [
  "use_dora",
  "modules_to_save",
  "neftune_noise_alpha",
  "deepspeed",
  "fsdp",
  "hub_model_id",
  "push_to_hub",
];
/** What to say of another trainer's key, as the rest of a sentence; null where it is none. `value`: as the file has it. */
export function counterpart(key: string, value: unknown): string | null {
  const own = Object.hasOwn(NAMES, key) ? NAMES[key]! : null;
  if (own !== null) return `; here it is "${own}"`;
  switch (key) {
    case "lora_target":
      return value === "all" ? '; here it is "target_modules: all-linear"' : '; here it is "target_modules"';
    case "lora_target_linear":
      return '; here it is "target_modules: all-linear"';
    case "quantization_bit":
      return `; here it is "load_in_${value === 8 ? 8 : 4}bit: true"`;
    case "bf16":
    case "fp16":
      return `; here it is "compute_dtype: ${key === "bf16" ? "bfloat16" : "float16"}" (and torch_dtype)`;
    case "train_on_inputs":
      return value === true
        ? "; it is not offered: the assistant's turns alone are trained on"
        : "; leave it out: the assistant's turns alone are trained on";
  }
  if (Object.hasOwn(DONE_ANYWAY, key)) return `; leave it out: ${DONE_ANYWAY[key]}`;
  return NOT_OFFERED.includes(key) ? "; it is not offered" : null;
}
