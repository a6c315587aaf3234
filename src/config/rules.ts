import { addressProblem, isLoopback } from "../common/address.ts";
import type { Command } from "./option.ts";
import type { Config } from "./options.ts";
import { schedulerProblem } from "./scheduler-kwargs.ts";

/** Options that contradict each other or lack a partner: one sentence each, empty when all is well. */
export function checkContradictions(command: Command, config: Config, given: ReadonlySet<string>): string[] {
  const problems: string[] = [];
  const expect = (condition: boolean, problem: string) => {
    if (!condition) problems.push(problem);
  };
  const needs = (
    key:
      | "model"
      | "dataset"
      | "output_dir"
      | "adapter"
      | "input"
      | "coordinator"
      | "config"
      | "names"
      | "name"
      | "new_tokens"
      | "shell",
  ) => expect(config[key] !== null, `--${key.replaceAll("_", "-")} is required for \`${command}\``);

  const onModels = [
    "train",
    "plan",
    "parameters",
    "generate",
    "chat",
    "serve",
    "merge",
    "export",
    "quantize",
    "add-tokens",
    "tokenize",
  ];
  if (onModels.includes(command)) needs("model");
  if (command === "train") {
    // Of several adapters each may have its own.
    if (config.adapters === null) needs("dataset");
    needs("output_dir");
  }
  if (command === "merge") {
    needs("adapter");
    needs("output_dir");
  }
  if (command === "ui") needs("output_dir");
  if (command === "quantize" || command === "export" || command === "add-tokens") needs("output_dir");
  if (command === "add-tokens") needs("new_tokens");
  if (command === "tokenize") needs("input");
  if (command === "convert-config") needs("config");
  if (command === "init-model") {
    needs("config");
    needs("output_dir");
  }
  if (command === "download" || command === "push") needs("name");
  if (command === "push") needs("adapter");
  if (command === "worker") needs("coordinator");
  if (command === "completion") needs("shell");
  if (command === "certs") {
    needs("names");
    needs("output_dir");
  }

  if (command === "train") checkElastic(config, given, expect);
  expect(
    config.link_dtype === "auto" || !config.deterministic_batches,
    `--deterministic-batches does not go with --link-dtype ${config.link_dtype}: numbers that are rounded between stages depend on where stages end`,
  );
  checkQuantisation(command, config, given, expect);
  if (command === "train" && config.adapters === null) checkTraining(config, given, expect);
  if (config.adapters !== null) checkSeveral(config, expect);
  if (command === "generate") {
    const sources = [config.prompt, config.prompt_ids, config.input].filter((value) => value !== null).length;
    expect(sources === 1, "generate takes one of --prompt, --prompt-ids and --input");
    expect((config.input === null) === (config.output === null), "--input and --output go together");
    expect(
      !(config.raw && config.prompt_ids !== null),
      "--raw goes with --prompt and --input; --prompt-ids are always taken as they are",
    );
  }
  if (!config.do_sample && (command === "generate" || command === "chat")) {
    for (const key of ["temperature", "top_p", "top_k", "min_p"]) {
      expect(!given.has(key), `--${key.replaceAll("_", "-")} acts only with --do-sample`);
    }
  }
  checkServing(command, config, given, expect);
  expect(config.nnodes === 1 || config.listen !== null, "--nnodes above 1 needs --listen HOST:PORT");
  expect(config.nodes === null || config.listen !== null, "--nodes needs --listen HOST:PORT");
  expect(
    config.nodes === null || !given.has("nnodes") || config.nnodes === config.nodes.length,
    `--nnodes ${config.nnodes} contradicts the ${config.nodes?.length} names of --nodes`,
  );
  expect(
    config.listen === null || config.workers === null,
    "--workers starts local workers; with --listen they join by themselves",
  );
  for (const [key, address] of [
    ["listen", config.listen],
    ["coordinator", config.coordinator],
    ["http", config.http],
  ] as const) {
    const wrong = address === null ? null : addressProblem(address);
    if (wrong !== null)
      problems.push(`--${key}: expected HOST:PORT (IPv6 as [::1]:PORT, port 0 - 65535), got "${address}": ${wrong}`);
  }
  if (problems.length > 0) return problems;
  const open = [
    config.listen,
    command === "worker" ? config.coordinator : null,
    command === "worker" ? config.bind : null,
  ];
  const beyond = open.find((address) => address !== null && !isLoopback(address));
  const files = [config.tls_ca, config.tls_cert, config.tls_key].filter((file) => file !== null).length;
  expect(files === 0 || files === 3, "--tls-ca, --tls-cert and --tls-key go together");
  expect(!(files > 0 && config.insecure), "--insecure asks for plaintext, --tls-ca for TLS");
  expect(
    config.join_token === null || config.join_token_file === null,
    "--join-token and --join-token-file contradict each other",
  );
  expect(
    beyond === undefined || config.insecure || files === 3,
    `${beyond} is beyond loopback, where traffic must be encrypted: give --tls-ca, --tls-cert and --tls-key, or say --insecure`,
  );
  return problems;
}

function checkServing(
  command: Command,
  config: Config,
  given: ReadonlySet<string>,
  expect: (condition: boolean, problem: string) => void,
): void {
  const tls = [config.http_tls_cert, config.http_tls_key].filter((file) => file !== null).length;
  expect(tls !== 1, "--http-tls-cert and --http-tls-key go together");
  expect(config.api_key === null || config.api_key_file === null, "--api-key and --api-key-file contradict each other");
  const beyond = config.http !== null && !isLoopback(config.http);
  expect(
    !beyond || tls === 2 || config.insecure,
    `--http ${config.http} is beyond loopback, where traffic must be encrypted: give --http-tls-cert and --http-tls-key, or say --insecure`,
  );
  if (command === "generate") {
    for (const key of ["max_num_seqs", "kv_cache_tokens"]) {
      expect(!given.has(key) || config.input !== null, `--${key.replaceAll("_", "-")} acts only with --input`);
    }
  }
  if (command !== "train") return;
  const acts = ["api_key_file", "http_tls_cert", "http_tls_key", "served_model_name", "request_timeout"];
  for (const key of [...acts, "max_concurrent_requests"]) {
    expect(!given.has(key) || config.http !== null, `--${key.replaceAll("_", "-")} acts only with --http`);
  }
  for (const key of ["max_num_seqs", "kv_cache_tokens", "max_num_batched_tokens"]) {
    expect(
      !given.has(key) || config.http !== null || config.sample_prompts !== null,
      `--${key.replaceAll("_", "-")} acts only with --http or --sample-prompts`,
    );
  }
  expect(
    config.sample_prompts === null || config.eval_strategy !== "no",
    "--sample-prompts are answered at evaluations: give --eval-strategy steps or epoch",
  );
}

/** Conflicts with a checkpoint that is already quantised are found when it is opened. */
function checkQuantisation(
  command: Command,
  config: Config,
  given: ReadonlySet<string>,
  expect: (condition: boolean, problem: string) => void,
): void {
  const { load_in_4bit: four, load_in_8bit: eight } = config;
  expect(!(four && eight), "--load-in-4bit and --load-in-8bit contradict each other: a weight is held in one form");
  if (eight) {
    for (const key of ["bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"]) {
      expect(!given.has(key), `--${key.replaceAll("_", "-")} acts only with --load-in-4bit, not with --load-in-8bit`);
    }
  }
  if (four) expect(!given.has("llm_int8_threshold"), "--llm-int8-threshold acts only with --load-in-8bit");
  // `quantize` writes 4 bits unless told otherwise.
  if (!four && command !== "quantize") {
    for (const key of ["bnb_4bit_quant_type", "bnb_4bit_use_double_quant"]) {
      expect(!given.has(key) || eight, `--${key.replaceAll("_", "-")} acts only with --load-in-4bit`);
    }
  }
}

/** What a run over changing workers can't do. */
function checkElastic(
  { elastic, min_workers, workers, listen }: Config,
  given: ReadonlySet<string>,
  expect: (condition: boolean, problem: string) => void,
): void {
  for (const key of ["min_workers", "elastic_join"]) {
    expect(elastic || !given.has(key), `--${key.replaceAll("_", "-")} acts only with --elastic`);
  }
  expect(
    !elastic || listen !== null || workers === null || min_workers <= workers,
    `--min-workers ${min_workers} is more than --workers ${workers}`,
  );
}

/** What a run of several adapters can't do. */
function checkSeveral(config: Config, expect: (condition: boolean, problem: string) => void): void {
  expect(
    config.init_lora_weights !== "eva",
    "--init-lora-weights eva looks at one adapter's rows: it does not go with --adapters",
  );
  expect(
    typeof config.resume_from_checkpoint !== "string" || config.resume_from_checkpoint === "auto",
    "--resume-from-checkpoint DIR is one adapter's: with --adapters leave the folder out, each goes on from its own last checkpoint",
  );
}

function checkTraining(
  config: Config,
  given: ReadonlySet<string>,
  expect: (condition: boolean, problem: string) => void,
): void {
  const lora = [
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "init_lora_weights",
    "eva_config",
    "use_dora",
    "modules_to_save",
    "bias",
    "trainable_token_indices",
  ];
  if (config.adapter !== null) {
    for (const key of lora) {
      expect(!given.has(key), `--${key.replaceAll("_", "-")} contradicts --adapter, whose own LoRA settings hold`);
    }
  }
  expect(
    config.eva_config === null || config.init_lora_weights === "eva",
    "--eva-config acts only with --init-lora-weights eva",
  );
  for (const key of ["loraplus_lr_embedding", "loraplus_weight_decay"]) {
    expect(
      !given.has(key) || config.loraplus_lr_ratio !== null,
      `--${key.replaceAll("_", "-")} acts only with --loraplus-lr-ratio`,
    );
  }
  expect(
    config.layers_pattern === null || config.layers_to_transform !== null,
    "--layers-pattern needs --layers-to-transform",
  );
  expect(
    config.eval_dataset === null || config.validation_split === 0,
    "--eval-dataset and --validation-split contradict each other",
  );
  expect(
    config.eval_strategy === "no" || config.eval_dataset !== null || config.validation_split > 0,
    "--eval-strategy needs --eval-dataset or --validation-split",
  );
  const judges =
    config.load_best_model_at_end || config.early_stopping_patience !== null || config.metric_for_best_model !== null;
  expect(
    !(judges || config.save_strategy === "best") || config.eval_strategy !== "no",
    "a best model, and early stopping, need --eval-strategy steps or epoch",
  );
  expect(
    !config.load_best_model_at_end || config.save_strategy === "best" || config.save_strategy === config.eval_strategy,
    `--load-best-model-at-end needs checkpoints of what is evaluated: --save-strategy ${config.save_strategy} is not --eval-strategy ${config.eval_strategy}`,
  );
  expect(
    config.greater_is_better === null || judges || config.save_strategy === "best",
    "--greater-is-better acts only with --metric-for-best-model, --load-best-model-at-end or --early-stopping-patience",
  );
  expect(
    !given.has("early_stopping_threshold") || config.early_stopping_patience !== null,
    "--early-stopping-threshold acts only with --early-stopping-patience",
  );
  expect(config.validation_split < 1, "--validation-split leaves no rows to train on");
  expect(
    !(config.overwrite_output_dir && config.resume_from_checkpoint),
    "--overwrite-output-dir contradicts --resume-from-checkpoint",
  );
  const schedule = schedulerProblem(config);
  expect(schedule === null, schedule ?? "");
  expect(
    !(config.lr_scheduler_type === "constant" && (config.warmup_steps > 0 || config.warmup_ratio > 0)),
    "--lr-scheduler-type constant has no warm-up; use constant_with_warmup",
  );
}
