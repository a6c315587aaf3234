import type { z } from "zod";
import { PipeloraError } from "../common/errors.ts";
import { nearest } from "../common/nearest.ts";
import { shown } from "../common/shown.ts";
import { COMMANDS, type Command, type FlagKind, flagOf, type Option } from "./option.ts";
import { type Config, OPTIONS, type OptionKey, optionsOf } from "./options.ts";
import { counterpartText } from "./others.ts";
import { checkContradictions } from "./rules.ts";
import { readYaml } from "./yaml-file.ts";

/** Commands whose --config is what they work on, no file of flags. */
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
        // One file serves every command, so keys of other commands are left alone.
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

  const config = parseValues(values, problems);
  if (problems.length === 0) problems.push(...checkContradictions(command, config, given));
  if (problems.length > 0) {
    throw new PipeloraError("PL_CONFIG_INVALID", problems.join("\n"), {
      hint: `Run \`coordinator ${command} --help\` for the flags and their values.`,
    });
  }
  return config;
}

/** The configuration with nothing given. */
export function defaultConfig(): Config {
  return parseValues({}, []);
}

/** Names of the settings that are not what they are where nothing is given. */
export function changedKeys(config: Config): OptionKey[] {
  const defaults = defaultConfig();
  return (Object.keys(defaults) as OptionKey[]).filter(
    (key) => JSON.stringify(config[key]) !== JSON.stringify(defaults[key]),
  );
}

function parseValues(values: Record<string, unknown>, problems: string[]): Config {
  const config: Record<string, unknown> = {};
  for (const [key, option] of Object.entries(OPTIONS) as [OptionKey, Option][]) {
    const result = option.schema.safeParse(values[key]);
    if (result.success) config[key] = result.data;
    else problems.push(`${flagOf(key)}: ${describeIssues(result.error.issues, values[key])}`);
  }
  return config as Config;
}

function describeIssues(issues: readonly z.core.$ZodIssue[], value: unknown): string {
  const what = issues.map((issue) => issue.message.replace(/^Invalid (input|option): /, "")).join("; ");
  return `${what}, got ${shown(value)}`;
}

type Parsed = { readonly ok: true; readonly value: unknown } | { readonly ok: false; readonly expected: string };

function parseFlag(kind: FlagKind, text: string | boolean): Parsed {
  switch (kind) {
    case "boolean":
      return parseBoolean(text) ?? { ok: false, expected: "true or false" };
    case "boolean-or-string":
      return parseBoolean(text) ?? { ok: true, value: text };
    case "integer":
      return isText(text) && /^-?\d+$/.test(text)
        ? { ok: true, value: Number(text) }
        : { ok: false, expected: "a whole number" };
    case "number":
      return isText(text) && text.trim() !== "" && Number.isFinite(Number(text))
        ? { ok: true, value: Number(text) }
        : { ok: false, expected: "a number" };
    case "list":
      if (!isText(text)) return { ok: false, expected: "a comma-separated list" };
      return { ok: true, value: splitList(text) };
    case "json":
      try {
        if (isText(text)) return { ok: true, value: JSON.parse(text) };
      } catch {}
      return { ok: false, expected: "JSON" };
    case "string":
      return isText(text) ? { ok: true, value: text } : { ok: false, expected: "a value" };
  }
}

/** YAML 1.1's words for true and false, which YAML 1.2 takes for text; "a,b" where a list is wanted. */
export function typedAsFlag(kind: FlagKind, value: unknown): unknown {
  if (typeof value !== "string") return value;
  if (kind === "boolean" || (kind === "boolean-or-string" && /^(yes|no|on|off)$/i.test(value))) {
    return parseBoolean(value)?.value ?? value;
  }
  return kind === "list" ? splitList(value) : value;
}

/** At commas outside of brackets: "a{1,2}" and "(a,b)" are one regular expression each. */
function splitList(text: string): string | string[] {
  const parts = text.split(/,(?![^([{]*[)\]}])/).map((part) => part.trim());
  return parts.length > 1 ? parts : text;
}

function isText(value: string | boolean): value is string {
  return typeof value === "string";
}

function parseBoolean(text: string | boolean): { readonly ok: true; readonly value: boolean } | null {
  if (typeof text === "boolean") return { ok: true, value: text };
  if (/^(true|1|yes|on)$/i.test(text)) return { ok: true, value: true };
  if (/^(false|0|no|off)$/i.test(text)) return { ok: true, value: false };
  return null;
}

function suggestion(key: string, candidates: readonly string[], show: (key: string) => string = (k) => k): string {
  const [near] = nearest(key, candidates, 1);
  if (near !== undefined) return `; did you mean ${show(near)}?`;
  const elsewhere = COMMANDS.find((command) => optionsOf(command).some(([name]) => name === key));
  return elsewhere === undefined ? "" : ` (it belongs to \`${elsewhere}\`)`;
}
