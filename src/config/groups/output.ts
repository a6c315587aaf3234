import { COMMANDS } from "../option.ts";
import { choice, flag, option, optional, RUNS, text } from "./vocabulary.ts";

export const fileOptions = {
  config: option(
    "string",
    "Output",
    [...RUNS, "init-model", "convert-config"],
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
  format: option("string", "Output", ["export"], choice(["gguf"]).default("gguf"), "What is written.", "FORMAT"),
  outtype: option(
    "string",
    "Output",
    ["export"],
    choice(["auto", "f32", "f16", "bf16", "q8_0"]).default("auto"),
    "What tensors are held in; auto: the checkpoint's dtype, of an adapter float32.",
    "TYPE",
  ),
  adapter_only: option("boolean", "Output", ["export"], flag(), "Write the adapter alone, as a GGUF LoRA."),
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
