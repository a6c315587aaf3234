import { shown } from "../common/shown.ts";
import { typedAsFlag } from "./load.ts";
import { OPTIONS, type OptionKey } from "./options.ts";
import { counterpart } from "./others.ts";

export interface ConvertedConfig {
  /** Keys and values of a file of this program's. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** What is left out and why, what to look at: a sentence each. */
  readonly remarks: readonly string[];
}

interface Trainer {
  readonly name: string;
  readonly knownBy: readonly string[];
  /** Its defaults that decide numbers and are others here: written out where the file does not say them. */
  readonly defaults: (given: Readonly<Record<string, unknown>>) => Readonly<Record<string, unknown>>;
  /** Its meaning of keys that are spelled as ones of ours. */
  readonly own: Readonly<Record<string, (value: unknown) => Own | null>>;
}
interface Own {
  readonly settings: Readonly<Record<string, unknown>>;
  readonly remark: string | null;
}

const LORA_KINDS = ["lora", "qlora"];

/** By the published defaults of LLaMA-Factory 0.9, Axolotl 0.13 and TRL 0.24. */
const TRAINERS: readonly Trainer[] = [
  {
    name: "LLaMA-Factory",
    knownBy: ["finetuning_type", "stage", "cutoff_len", "lora_target", "dataset_dir"],
    defaults: ({ lora_r }) => {
      const rank = typeof lora_r === "number" ? lora_r : 8;
      return { lora_r: rank, lora_alpha: 2 * rank, lora_dropout: 0, target_modules: "all-linear", max_length: 2048 };
    },
    own: {
      template: (value) => ({
        settings: {},
        remark: `template ${shown(value)}: the template that comes with the model's tokenizer is used`,
      }),
      dataset: (value) => ({
        settings: { dataset: value },
        remark: "dataset: names of dataset_info.json are to be replaced by the files that they stand for",
      }),
    },
  },
  {
    name: "Axolotl",
    knownBy: ["base_model", "sequence_len", "lora_target_linear", "micro_batch_size"],
    defaults: () => ({ bnb_4bit_quant_type: "nf4", bnb_4bit_use_double_quant: true }),
    own: {
      adapter: (value) =>
        LORA_KINDS.includes(String(value))
          ? { settings: value === "qlora" ? { load_in_4bit: true } : {}, remark: "adapter: LoRA is what is trained" }
          : null,
    },
  },
  {
    name: "TRL",
    knownBy: ["use_peft", "dataset_name", "assistant_only_loss", "lora_target_modules"],
    defaults: () => ({
      ...{ lora_r: 16, lora_alpha: 32, lora_dropout: 0.05, learning_rate: 2e-5, max_length: 1024 },
      ...{ gradient_checkpointing: true, logging_steps: 10 },
    }),
    own: {},
  },
];

/**
 * A configuration of LLaMA-Factory, Axolotl or TRL in this program's keys. Keys that are the same stay if their values are valid here;
 * nothing is left out without a remark.
 */
export function convertConfig(theirs: Readonly<Record<string, unknown>>): ConvertedConfig {
  const trainer = TRAINERS.find(({ knownBy }) => knownBy.some((key) => key in theirs)) ?? null;
  const settings: Record<string, unknown> = {};
  const remarks: string[] = [];
  const set = (key: string, from: Readonly<Record<string, unknown>>) => {
    for (const [own, given] of Object.entries(from)) {
      const value = typedAsFlag(OPTIONS[own as OptionKey].kind, given);
      const problem = invalid(own, value);
      if (problem === null) settings[own] = value;
      else remarks.push(`${key} ${shown(value)} has no counterpart: ${own} takes ${problem}`);
    }
  };
  for (const [key, value] of Object.entries(theirs)) {
    if (value === null) continue;
    const own = trainer !== null && Object.hasOwn(trainer.own, key) ? trainer.own[key]!(value) : null;
    if (own !== null) {
      set(key, own.settings);
      if (own.remark !== null) remarks.push(own.remark);
    } else if (Object.hasOwn(OPTIONS, key)) {
      set(key, { [key]: value });
    } else {
      const found = counterpart(key, value);
      if (found === null) remarks.push(`${key}: has no counterpart`);
      else if (found.lost) remarks.push(`${key}: is not offered${found.remark === null ? "" : `; ${found.remark}`}`);
      else if (found.remark !== null) remarks.push(`${key}: ${found.remark}`);
      if (found !== null) set(key, found.settings);
    }
  }
  if (trainer !== null) {
    const quantised = settings["load_in_4bit"] === true;
    for (const [key, value] of Object.entries(trainer.defaults(settings))) {
      if (key in settings || (key.startsWith("bnb_") && !quantised)) continue;
      settings[key] = value;
      remarks.push(`${key}: ${trainer.name}'s default, written out`);
    }
  }
  const missing = ["model", "dataset", "output_dir"].filter((key) => !(key in settings));
  if (missing.length > 0) remarks.push(`still to be given: ${missing.join(", ")}`);
  return { settings, remarks };
}

/** What an option takes, where it does not take this value; null where it does. */
function invalid(key: string, value: unknown): string | null {
  const result = OPTIONS[key as OptionKey].schema.safeParse(value);
  return result.success
    ? null
    : result.error.issues.map(({ message }) => message.replace(/^Invalid (input|option): /, "")).join("; ");
}
