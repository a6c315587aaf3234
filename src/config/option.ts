import type { z } from "zod";

/** The commands of `coordinator` and what --help says of them; the first is the default. */
export const COORDINATOR_COMMANDS = {
  train: "fine-tune with LoRA",
  sweep: "train a grid of adapters over one base and rank them: flags of `train`, adapters' own with several values",
  plan: "show placement, memory and predicted step time; reads no weight",
  parameters: "list every parameter as it will be held",
  generate: "continue a prompt, or all prompts of a file",
  chat: "talk with the model",
  serve: "answer over HTTP as OpenAI's API does",
  ui: "show runs on a page: curves, placement, timeline, log; of a finished one, or one that goes on",
  merge: "add an adapter to its base model's weights",
  export: "write the model, or an adapter alone, as a GGUF file for llama.cpp and Ollama",
  quantize: "write the model as a 4-bit or 8-bit checkpoint",
  "add-tokens": "write the model with more tokens in its vocabulary",
  tokenize: "show the token ids that training will see",
  "init-model": "write a checkpoint of random weights for a config.json",
  download: "fetch a model, a data set or an adapter by its name, and print where it lies",
  push: "put an adapter on the Hugging Face hub, with a model card",
  "convert-config": "turn a configuration of LLaMA-Factory, Axolotl or TRL into one of pipelora's",
  certs: "make a CA and a certificate for each node",
  demo: "make a small model, train it over three worker processes, and ask it before and after",
  doctor: "look at this machine: what was found, whether training works here, and what to do",
  completion: "print the completion of commands and flags for bash, zsh or fish",
} as const;
export type CoordinatorCommand = keyof typeof COORDINATOR_COMMANDS;

/** What --help says of the `worker` program. */
export const WORKER_SUMMARY = "hold and train a part of the model for a coordinator";

/** These and the `worker` program. */
export type Command = CoordinatorCommand | "worker";
export const COMMANDS: readonly Command[] = [...(Object.keys(COORDINATOR_COMMANDS) as CoordinatorCommand[]), "worker"];

/** Headings of the flags' table and of --help. */
export type OptionGroup =
  | "Model"
  | "Quantisation"
  | "LoRA"
  | "Data"
  | "Training"
  | "Logging and saving"
  | "Placement"
  | "Processes"
  | "Trust"
  | "Generation"
  | "Serving"
  | "Output";

/** How a flag's text becomes a value; YAML values come typed already. */
export type FlagKind = "string" | "integer" | "number" | "boolean" | "list" | "json" | "boolean-or-string";

export interface Option<T extends z.ZodType = z.ZodType> {
  readonly schema: T;
  readonly kind: FlagKind;
  readonly group: OptionGroup;
  readonly commands: readonly Command[];
  /** One sentence for --help and the docs table. */
  readonly help: string;
  /** What stands for the value in --help. */
  readonly placeholder: string;
  /** Environment variable that gives the value where neither a flag nor the file does. */
  readonly environment?: string;
  /** A value of this form is meant for another option; named for commands that have it. */
  readonly other?: { readonly form: RegExp; readonly key: string };
  /** Kept out of every file and log. */
  readonly secret?: true;
  /** Commands for which the flag may be repeated: its values are joined with commas. Of other flags the last one counts. */
  readonly repeats?: readonly Command[];
}

/** "per_device_train_batch_size" -> "--per-device-train-batch-size" */
export function flagOf(key: string): string {
  return `--${key.replaceAll("_", "-")}`;
}
