import type { z } from "zod";

/** The commands of `coordinator`, and the `worker` program. */
export const COMMANDS = [
  "train",
  "plan",
  "parameters",
  "generate",
  "chat",
  "merge",
  "quantize",
  "tokenize",
  "init-model",
  "download",
  "certs",
  "worker",
] as const;
export type Command = (typeof COMMANDS)[number];

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
  /** Kept out of every file and log. */
  readonly secret?: true;
}

/** "per_device_train_batch_size" -> "--per-device-train-batch-size" */
export function flagOf(key: string): string {
  return `--${key.replaceAll("_", "-")}`;
}
