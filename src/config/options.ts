import type { z } from "zod";
import { dataOptions } from "./groups/data.ts";
import { generationOptions } from "./groups/generation.ts";
import { loraOptions } from "./groups/lora.ts";
import { modelOptions } from "./groups/model.ts";
import { fileOptions } from "./groups/output.ts";
import { placementOptions } from "./groups/placement.ts";
import { processOptions } from "./groups/processes.ts";
import { quantisationOptions } from "./groups/quantisation.ts";
import { savingOptions } from "./groups/saving.ts";
import { servingOptions } from "./groups/serving.ts";
import { trainingOptions } from "./groups/training.ts";
import { trustOptions } from "./groups/trust.ts";
import type { Command, Option } from "./option.ts";

/**
 * Every flag of every command: type, default, help. Flags, YAML keys, --help and docs/reference/flags.md all come from
 * this table. Names are those of TrainingArguments, LoraConfig, BitsAndBytesConfig and from_pretrained.
 */
export const OPTIONS = {
  ...modelOptions,
  ...quantisationOptions,
  ...loraOptions,
  ...dataOptions,
  ...trainingOptions,
  ...savingOptions,
  ...placementOptions,
  ...processOptions,
  ...trustOptions,
  ...generationOptions,
  ...servingOptions,
  ...fileOptions,
} satisfies Record<string, Option>;

export type OptionKey = keyof typeof OPTIONS;

/** A complete configuration: every option with its value or default. */
export type Config = { readonly [K in OptionKey]: z.infer<(typeof OPTIONS)[K]["schema"]> };

/** The configuration without secrets, for writing to a file. */
export function withoutSecrets(config: Config): Partial<Config> {
  const secret = (key: string) => (OPTIONS[key as OptionKey] as Option).secret === true;
  return Object.fromEntries(Object.entries(config).filter(([key]) => !secret(key)));
}

export function optionsOf(command: Command): [OptionKey, Option][] {
  // A sweep is a training run that makes its own adapters.
  const takes = ({ commands }: Option, key: OptionKey) =>
    commands.includes(command) || (command === "sweep" && commands.includes("train") && key !== "adapters");
  return (Object.entries(OPTIONS) as [OptionKey, Option][]).filter(([key, entry]) => takes(entry, key));
}
