import { join } from "node:path";
import { PipeloraError } from "../common/errors.ts";
import { changesBase } from "../common/lora-settings.ts";
import { nearest } from "../common/nearest.ts";
import { type Command, flagOf, type Option, type OptionGroup } from "./option.ts";
import { type Config, OPTIONS, type OptionKey } from "./options.ts";
import { checkContradictions } from "./rules.ts";
import { parseValue, typedAsFlag } from "./values.ts";
import { readYaml } from "./yaml-file.ts";

/** One adapter of a run, with its complete settings. */
export interface AdapterConfig {
  /** Null: the run has no other. */
  readonly name: string | null;
  readonly config: Config;
}

/** Groups whose options each adapter may set, except for those named below. */
const OWN_GROUPS: readonly OptionGroup[] = ["LoRA", "Data", "Training", "Logging and saving"];
/** The whole run's all the same. */
const RUNS_OWN: readonly OptionKey[] = [
  "adapters",
  "gradient_checkpointing",
  "activation_offload",
  "output_dir",
  "overwrite_output_dir",
  "save_on_each_node",
  "save_failure",
  "resume_from_checkpoint",
  "report_to",
  "logging_dir",
  "trace",
  "trace_steps",
];
/** Of other groups. */
const ADAPTERS_OWN: readonly OptionKey[] = ["adapter", "micro_batch_tokens", "sample_prompts"];

/** Whether an adapter of several may set it. */
export function isAdaptersOwn(key: OptionKey): boolean {
  const { group, commands }: Option = OPTIONS[key];
  if (!commands.includes("train") || RUNS_OWN.includes(key)) return false;
  return OWN_GROUPS.includes(group) || ADAPTERS_OWN.includes(key);
}

/** What an adapter may not set, and why. */
function reasonAgainst(key: OptionKey): string {
  const { group, commands }: Option = OPTIONS[key];
  if (!commands.includes("train")) return "is no setting of `train`";
  if (group === "Model" || group === "Quantisation") return "is the base's, which is held once for all adapters";
  if (group === "Placement" || group === "Processes" || group === "Trust") return "is the cluster's";
  return "is the whole run's";
}

/** Names become folders in output_dir, beside the run's own files. */
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$/;
const TAKEN = /^(runs|checkpoint-\d+|sweep\.\w+|metrics\.jsonl)$/i;

/** Reads NAME: {settings} entries of a file, also below one key `adapters`. Error: PL_CONFIG_INVALID. */
export async function readAdapters(path: string): Promise<Record<string, unknown>> {
  const read = await readYaml(path, "--adapters");
  const { adapters } = read;
  const wrapped = Object.keys(read).length === 1 && typeof adapters === "object" && adapters !== null;
  return wrapped && !Array.isArray(adapters) ? (adapters as Record<string, unknown>) : read;
}

/**
 * The adapters of a run: the configuration itself, or each entry of `adapters` with its settings over the run's, in output_dir/NAME. Each
 * configuration equals the one of a run alone. Error: PL_CONFIG_INVALID, naming every problem of every adapter.
 */
export function adapterConfigs(command: Command, config: Config): AdapterConfig[] {
  if (config.adapters === null) return [{ name: null, config }];
  const problems: string[] = [];
  const known = new Map<string, string>();
  const all = Object.entries(config.adapters).map(([name, settings]) => {
    const label = `adapter "${name}"`;
    const fail = (problem: string) => problems.push(`${label}: ${problem}`);
    if (!NAME.test(name) || TAKEN.test(name)) {
      fail(
        "expected a name that can be a folder's: letters, digits, dots, dashes and underscores, none that the run itself uses",
      );
    }
    const other = known.get(name.toLowerCase());
    if (other !== undefined) fail(`"${other}" would be the same folder where names are compared without their case`);
    known.set(name.toLowerCase(), name);
    const own = ownValues(settings ?? {}, fail);
    const merged: Config = {
      ...config,
      ...own,
      adapters: null,
      output_dir: config.output_dir === null ? null : join(config.output_dir, name),
      logging_dir: config.logging_dir === null ? null : join(config.logging_dir, name),
    };
    for (const problem of checkContradictions(command, merged, new Set(Object.keys(own)))) fail(problem);
    return { name, config: merged };
  });
  problems.push(...otherBases(all));
  if (all.length === 0) problems.push("--adapters: expected NAME: {settings}, at least one, got none");
  if (problems.length > 0) {
    throw new PipeloraError("PL_CONFIG_INVALID", problems.join("\n"), {
      hint: "An adapter's settings are those of LoRA, data, training, logging and saving, in snake_case.",
    });
  }
  return all;
}

/** What decides a beginning that is taken out of the base, beside the weights. */
const BEGINNING: readonly OptionKey[] = [
  ...(["adapter", "init_lora_weights", "lora_r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"] as const),
  ...([
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "seed",
  ] as const),
];

/**
 * Adapters that begin with a part of the base leave the rest as their base. All have that one where all begin alike; any other base would be
 * another model to hold. One sentence for each adapter that would need one.
 */
function otherBases(all: readonly AdapterConfig[]): string[] {
  const taker = all.find(({ config }) => config.adapter === null && changesBase(config.init_lora_weights));
  if (taker === undefined) return [];
  const { init_lora_weights: init } = taker.config;
  // OLoRA draws nothing.
  const keys = BEGINNING.filter((key) => key !== "seed" || init !== "olora");
  return all.flatMap(({ name, config }) => {
    const differs = keys.filter((key) => JSON.stringify(config[key]) !== JSON.stringify(taker.config[key]));
    if (differs.length === 0) return [];
    return [
      `adapter "${name}": init_lora_weights ${init} of "${taker.name}" takes its beginning out of the base, which all adapters share: they must begin alike, but ${differs.join(", ")} ${differs.length === 1 ? "differs" : "differ"}. Give them the same, or train "${taker.name}" in a run alone`,
    ];
  });
}

function ownValues(settings: Readonly<Record<string, unknown>>, fail: (problem: string) => void): Partial<Config> {
  const own: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(settings)) {
    if (!Object.hasOwn(OPTIONS, key)) {
      const [near] = nearest(
        key,
        Object.keys(OPTIONS).filter((one) => isAdaptersOwn(one as OptionKey)),
        1,
      );
      fail(`unknown key "${key}"${near === undefined ? "" : `; did you mean ${near}?`}`);
    } else if (!isAdaptersOwn(key as OptionKey)) {
      fail(`${key} ${reasonAgainst(key as OptionKey)}: give it for the run (${flagOf(key)})`);
    } else {
      const option: Option = OPTIONS[key as OptionKey];
      const parsed = parseValue(option, typedAsFlag(option.kind, value));
      if (parsed.ok) own[key] = parsed.value;
      else fail(`${key}: ${parsed.problem}`);
    }
  }
  return own as Partial<Config>;
}
