import { PipeloraError } from "../common/errors.ts";
import { nearest } from "../common/nearest.ts";
import { adapterConfigs, readAdapters } from "./adapters.ts";
import { alternatives, type GridValue, gridAdapters, listedAlternatives, repeatedValues } from "./grid.ts";
import { COMMANDS, type Command, flagOf } from "./option.ts";
import { type Config, OPTIONS, type OptionKey, optionsOf } from "./options.ts";
import { counterpartText } from "./others.ts";
import { checkContradictions } from "./rules.ts";
import { parseFlag, parseValues, typedAsFlag } from "./values.ts";
import { readYaml } from "./yaml-file.ts";

/** Commands whose --config is the file that they work on, not a file of flags. */
const DATA_CONFIG: readonly Command[] = ["init-model", "convert-config"];

/** Flags as the command line gives them: text, or true where a flag stands without a value. */
export type FlagValues = Readonly<Record<string, string | boolean>>;

/**
 * Merges defaults, the environment, the YAML file named by `config` (train, plan, …) and flags; a flag wins over the file, the file
 * over the environment.
 * Errors: PL_CONFIG_INVALID, naming every unknown key and malformed value at once.
 */
export async function loadConfig(command: Command, flags: FlagValues): Promise<Config> {
  const problems: string[] = [];
  const grid = new Map<OptionKey, readonly GridValue[]>();
  const known = new Map(optionsOf(command));
  const values: Record<string, unknown> = {};
  const given = new Set<string>();

  const path = flags["config"];
  if (typeof path === "string" && !DATA_CONFIG.includes(command)) {
    for (const [key, value] of Object.entries(await readYaml(path))) {
      if (!Object.hasOwn(OPTIONS, key)) {
        const theirs = counterpartText(key, value);
        problems.push(`${path}: unknown key "${key}"${theirs ?? suggestion(key, Object.keys(OPTIONS))}`);
      } else if (known.has(key as OptionKey)) {
        const listed = command === "sweep" ? listedAlternatives(key as OptionKey, value) : null;
        if (listed !== null) {
          grid.set(key as OptionKey, listed);
          continue;
        }
        // One file serves every command, so keys of other commands are ignored.
        values[key] = typedAsFlag(known.get(key as OptionKey)!.kind, value);
        given.add(key);
      }
    }
  }
  for (const [flag, text] of Object.entries(flags)) {
    const { other } = known.get(flag as OptionKey) ?? {};
    const meant = other !== undefined && known.has(other.key as OptionKey) && other.form.test(String(text));
    const key = meant ? other.key : flag;
    const option = known.get(key as OptionKey);
    if (option === undefined) {
      problems.push(`unknown flag ${flagOf(key)}${suggestion(key, [...known.keys()], flagOf)}`);
      continue;
    }
    const several = command === "sweep" ? alternatives(key as OptionKey, text) : null;
    // A flag replaces the file's value and the file's alternatives.
    grid.delete(key as OptionKey);
    if (several !== null) {
      grid.set(key as OptionKey, several.values);
      problems.push(...several.problems);
      continue;
    }
    const parsed = parseFlag(option.kind, text);
    if (parsed.ok) values[key] = parsed.value;
    else problems.push(`${flagOf(key)}: expected ${parsed.expected}, got "${text}"`);
    given.add(key);
  }

  for (const [key, option] of known) {
    const text = option.environment === undefined ? undefined : process.env[option.environment];
    if (given.has(key) || text === undefined || text === "") continue;
    const parsed = parseFlag(option.kind, text);
    if (parsed.ok) values[key] = parsed.value;
    else problems.push(`$${option.environment}: expected ${parsed.expected}, got "${text}"`);
    given.add(key);
  }

  if (command === "sweep") {
    if (grid.size === 0) problems.push("sweep takes several values of an adapter's setting: --learning-rate 1e-4,2e-4");
    if (problems.length === 0) problems.push(...repeatedValues(grid));
    values["adapters"] = gridAdapters(grid);
  }
  if (typeof values["adapters"] === "string") values["adapters"] = await readAdapters(values["adapters"]);
  const config = parseValues(values, problems);
  if (problems.length === 0)
    problems.push(...checkContradictions(command === "sweep" ? "train" : command, config, given));
  // Each of several adapters is checked like a run alone.
  if (problems.length === 0 && config.adapters !== null)
    adapterConfigs(command === "sweep" ? "train" : command, config);
  if (problems.length > 0) {
    throw new PipeloraError("PL_CONFIG_INVALID", [...new Set(problems)].join("\n"), {
      hint: `Run \`coordinator ${command} --help\` for the flags and their values.`,
    });
  }
  return config;
}

/** The configuration with nothing given. */
export function defaultConfig(): Config {
  return parseValues({}, []);
}

/** Names of the settings that differ from their defaults. */
export function changedKeys(config: Config): OptionKey[] {
  const defaults = defaultConfig();
  return (Object.keys(defaults) as OptionKey[]).filter(
    (key) => JSON.stringify(config[key]) !== JSON.stringify(defaults[key]),
  );
}

function suggestion(key: string, candidates: readonly string[], show: (key: string) => string = (k) => k): string {
  const [near] = nearest(key, candidates, 1);
  if (near !== undefined) return `; did you mean ${show(near)}?`;
  const elsewhere = COMMANDS.find((command) => optionsOf(command).some(([name]) => name === key));
  return elsewhere === undefined ? "" : ` (it belongs to \`${elsewhere}\`)`;
}
