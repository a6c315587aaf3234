import { shown } from "../common/shown.ts";
import { datasetNames, setsOfAxolotl, setsOfInfo } from "./dataset-info.ts";
import { TRACKERS } from "./groups/saving.ts";
import { OPTIONS, type OptionKey } from "./options.ts";
import { counterpart } from "./others.ts";
import { typedAsFlag } from "./values.ts";

export interface ConvertedConfig {
  /** Keys and values of a file of this program's. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Remarks, a sentence each: what is left out and why, and what to check. */
  readonly remarks: readonly string[];
}

interface Trainer {
  readonly name: string;
  readonly knownBy: readonly string[];
  /** The other program's defaults that change numbers and differ from ours: written out where the file does not set them. */
  readonly defaults: (given: Readonly<Record<string, unknown>>) => Readonly<Record<string, unknown>>;
  /** Keys that are spelled like ours but mean something else there. */
  readonly own: Readonly<Record<string, (value: unknown, surroundings: Surroundings) => Own | null>>;
}
interface Own {
  readonly settings: Readonly<Record<string, unknown>>;
  readonly remarks: readonly string[];
}

/** What else decides a key's meaning. */
interface Surroundings {
  readonly theirs: Readonly<Record<string, unknown>>;
  readonly datasetInfo: DatasetInfo | null;
}

/** LLaMA-Factory's dataset_info.json and its folder. */
export interface DatasetInfo {
  readonly dir: string;
  readonly info: Readonly<Record<string, unknown>>;
}

/** Where LLaMA-Factory looks for dataset_info.json; null: the file is not one of LLaMA-Factory's. */
export function datasetInfoDir(theirs: Readonly<Record<string, unknown>>): string | null {
  if (trainerOf(theirs)?.name !== "LLaMA-Factory" || theirs["dataset"] === undefined) return null;
  return typeof theirs["dataset_dir"] === "string" ? theirs["dataset_dir"] : "data";
}

function namedSets(key: "dataset" | "eval_dataset") {
  return (value: unknown, { theirs, datasetInfo }: Surroundings): Own => {
    if (datasetInfo === null) {
      const remark = `${key}: names of dataset_info.json are to be replaced by the files that they stand for`;
      return { settings: { [key]: value }, remarks: [remark] };
    }
    const limit = typeof theirs["max_samples"] === "number" ? theirs["max_samples"] : null;
    const { sets, remarks } = setsOfInfo(datasetNames(value), datasetInfo.info, datasetInfo.dir, limit);
    return { settings: sets.length === 0 ? {} : { [key]: sets }, remarks };
  };
}

const LORA_KINDS = ["lora", "qlora"];

/** Follows the published defaults of LLaMA-Factory 0.9, Axolotl 0.13 and TRL 0.24. */
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
        remarks: [`template ${shown(value)}: the template that comes with the model's tokenizer is used`],
      }),
      dataset: namedSets("dataset"),
      eval_dataset: namedSets("eval_dataset"),
      dataset_dir: (value, { datasetInfo }) =>
        datasetInfo === null
          ? { settings: {}, remarks: [`dataset_dir ${shown(value)}: no dataset_info.json was found there`] }
          : { settings: {}, remarks: ["dataset_dir: its dataset_info.json says what the names of dataset are"] },
      max_samples: (_value, { datasetInfo }) =>
        datasetInfo === null ? null : { settings: {}, remarks: ["max_samples: rows of each set"] },
    },
  },
  {
    name: "Axolotl",
    knownBy: ["base_model", "sequence_len", "lora_target_linear", "micro_batch_size"],
    defaults: () => ({ bnb_4bit_quant_type: "nf4", bnb_4bit_use_double_quant: true }),
    own: {
      adapter: (value) =>
        LORA_KINDS.includes(String(value))
          ? { settings: value === "qlora" ? { load_in_4bit: true } : {}, remarks: ["adapter: LoRA is what is trained"] }
          : null,
      ...Object.fromEntries(
        [
          ["datasets", "dataset"],
          ["test_datasets", "eval_dataset"],
        ].map(([theirs, ours]) => [
          theirs!,
          (value: unknown) => {
            if (!Array.isArray(value)) return null;
            const { sets, remarks } = setsOfAxolotl(value);
            const plain = sets.every(({ columns }) => columns === undefined);
            return { settings: { [ours!]: plain ? sets.map(({ path }) => path) : sets }, remarks };
          },
        ]),
      ),
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

function trainerOf(theirs: Readonly<Record<string, unknown>>): Trainer | null {
  return TRAINERS.find(({ knownBy }) => knownBy.some((key) => key in theirs)) ?? null;
}

/**
 * Converts a configuration of LLaMA-Factory, Axolotl or TRL to this program's keys. A key of the same name stays if its value is valid
 * here. Whatever is left out gets a remark. `datasetInfo`: the sets that names of LLaMA-Factory stand for, where it was found.
 */
export function convertConfig(
  theirs: Readonly<Record<string, unknown>>,
  datasetInfo: DatasetInfo | null = null,
): ConvertedConfig {
  const trainer = trainerOf(theirs);
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
    const own =
      trainer !== null && Object.hasOwn(trainer.own, key) ? trainer.own[key]!(value, { theirs, datasetInfo }) : null;
    if (own !== null) {
      set(key, own.settings);
      remarks.push(...own.remarks);
    } else if (key === "report_to") {
      const { settings: kept, remarks: said } = trackers(value);
      set(key, kept);
      remarks.push(...said);
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

/** Keeps the reporters that exist here; "all" means those that are installed there. */
function trackers(value: unknown): Own {
  const asked = [value].flat();
  const known = asked.filter((name) => invalid("report_to", name) === null);
  const settings = known.length === 0 ? {} : { report_to: known.length === 1 ? known[0] : known };
  const unknown = asked.filter((name) => !known.includes(name));
  const remarks = unknown.map(
    (name) => `report_to ${shown(name)} has no counterpart; there are ${TRACKERS.join(", ")}`,
  );
  return { settings, remarks };
}

/** What an option expects, if it does not accept this value; null if it does. */
function invalid(key: string, value: unknown): string | null {
  const result = OPTIONS[key as OptionKey].schema.safeParse(value);
  return result.success
    ? null
    : result.error.issues.map(({ message }) => message.replace(/^Invalid (input|option): /, "")).join("; ");
}
