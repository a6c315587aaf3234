import { isAdaptersOwn } from "./adapters.ts";
import { type FlagKind, flagOf, type Option } from "./option.ts";
import { OPTIONS, type OptionKey } from "./options.ts";
import { parseFlag } from "./values.ts";

/** One value of a setting, and its part of an adapter's name. */
export interface GridValue {
  readonly value: unknown;
  readonly text: string;
}

/** The settings that `sweep` varies: every combination of their values is tried. */
export type Grid = ReadonlyMap<OptionKey, readonly GridValue[]>;

/** Settings whose values contain commas; their alternatives are separated by semicolons. */
const LISTS: readonly FlagKind[] = ["list", "json"];
const TEXTS: readonly OptionKey[] = ["dataset", "eval_dataset", "system", "sample_prompts"];

/**
 * The alternatives in a flag's text, separated by commas (by semicolons for lists, JSON and free text); null if there is only one, or if an
 * adapter can't set it.
 */
export function alternatives(
  key: OptionKey,
  text: string | boolean,
): { readonly values: readonly GridValue[]; readonly problems: readonly string[] } | null {
  if (typeof text !== "string" || !isAdaptersOwn(key)) return null;
  const { kind }: Option = OPTIONS[key];
  const separator = LISTS.includes(kind) || TEXTS.includes(key) ? ";" : ",";
  const parts = text.split(separator).map((part) => part.trim());
  if (parts.length < 2) return null;
  const problems: string[] = [];
  const values = parts.map((part): GridValue => {
    const parsed = parseFlag(kind, part);
    if (!parsed.ok) problems.push(`${flagOf(key)}: expected ${parsed.expected}, got "${part}" among "${text}"`);
    return { value: parsed.ok ? parsed.value : null, text: part };
  });
  return { values, problems };
}

/** The same for a value of a file: a list, for a setting that is no list itself. */
export function listedAlternatives(key: OptionKey, value: unknown): readonly GridValue[] | null {
  const { kind }: Option = OPTIONS[key];
  if (!Array.isArray(value) || value.length < 2 || !isAdaptersOwn(key)) return null;
  if (LISTS.includes(kind) || TEXTS.includes(key)) return null;
  return value.map((one) => ({ value: one, text: String(one) }));
}

/** Values that a setting has twice, however they are written: their adapters would be the same. */
export function repeatedValues(grid: Grid): string[] {
  return [...grid].flatMap(([key, values]) => {
    const seen = new Set<string>();
    return values
      .filter(({ value }) => seen.size === seen.add(JSON.stringify(value)).size)
      .map(({ text }) => `${flagOf(key)}: expected different values, got ${text} twice`);
  });
}

const MOST_NAME = 100;

/** NAME: {settings} for every point of the grid; the last setting varies fastest. A name shows its point's values if that stays short. */
export function gridAdapters(grid: Grid): Record<string, Record<string, unknown>> {
  let points: { name: string; settings: Record<string, unknown> }[] = [{ name: "", settings: {} }];
  for (const [key, values] of grid) {
    points = points.flatMap(({ name, settings }) =>
      values.map(({ value, text }) => ({
        name: `${name}${name === "" ? "" : "_"}${key}-${text.replace(/[^A-Za-z0-9.]+/g, "-")}`,
        settings: { ...settings, [key]: value },
      })),
    );
  }
  const names = points.map(({ name }) => name.toLowerCase());
  const plain = names.every((name) => name.length <= MOST_NAME) && new Set(names).size === names.length;
  const digits = String(points.length).length;
  return Object.fromEntries(
    points.map(({ name, settings }, index) => [
      plain ? name : `trial-${String(index + 1).padStart(digits, "0")}`,
      settings,
    ]),
  );
}
