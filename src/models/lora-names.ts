import { PipeloraError } from "../common/errors.ts";
import type { LoraSettings } from "../common/lora-settings.ts";
import { matchNames } from "./python-regex.ts";

// How LoRA's settings name modules, as peft matches them. Error of what takes patterns: PL_CONFIG_INVALID, naming the setting.

/** Whether the name, or its end after a dot, is one of `suffixes`. */
export const endsWithAny = (name: string, suffixes: readonly string[]) =>
  suffixes.some((suffix) => name === suffix || name.endsWith(`.${suffix}`));

/** The names that exclude_modules leaves out: by their ends, or a pattern of whole names. */
export function excludedNames(excludeModules: string | readonly string[], names: readonly string[]): Set<string> {
  if (typeof excludeModules !== "string") return new Set(names.filter((name) => endsWithAny(name, excludeModules)));
  const matches = matchNames("exclude_modules", excludeModules, names);
  return new Set(names.filter((_, index) => matches[index] !== null));
}

/** The names that target_modules takes, in the layers of layers_to_transform. */
export function matchTargets(settings: LoraSettings, names: readonly string[]): Set<string> {
  const { targetModules } = settings;
  if (typeof targetModules === "string") {
    const matches = matchNames("target_modules", targetModules, names);
    return new Set(names.filter((_, index) => matches[index] !== null));
  }
  const found = names.filter((name) => endsWithAny(name, targetModules));
  if (settings.layersToTransform === null) return new Set(found);
  const wanted = [settings.layersToTransform].flat();
  if (wanted.length === 0) return new Set(found);
  const indexes = layerIndexes(settings.layersPattern, found);
  // A name given in full is taken whatever its layer.
  return new Set(found.filter((name, i) => targetModules.includes(name) || wanted.includes(indexes[i] ?? -1)));
}

/** The block number in each name: the digits after the last module list, or after the one that layers_pattern names. */
function layerIndexes(layersPattern: string | readonly string[] | null, names: readonly string[]): (number | null)[] {
  const given = [layersPattern ?? []].flat();
  const patterns = given.length === 0 ? ["[^.]*"] : given;
  const matches = patterns.map((pattern) =>
    matchNames("layers_pattern", pattern, names, { prefix: "^.*\\.(?:", suffix: ")\\.(?<layer>\\d+)\\." }),
  );
  return names.map((_, index) => {
    const match = matches.map((found) => found[index]).find((found) => found !== null && found !== undefined);
    const digits = match?.groups?.["layer"];
    return digits === undefined ? null : Number(digits);
  });
}

/** For each name the match of a key of rank_pattern or alpha_pattern with its end, as `(.*\.)?(key)$`; or null. */
export function matchEnds(setting: string, key: string, names: readonly string[]): (RegExpExecArray | null)[] {
  return matchNames(setting, key, names, { prefix: "^(?:.*\\.)?(?:", suffix: ")$" });
}

/** The value of the first key that matches the end of each name, as `(.*\.)?(key)$`. */
export function patternValues(
  setting: string,
  patterns: Readonly<Record<string, number>>,
  names: readonly string[],
  fallback: number,
): ReadonlyMap<string, number> {
  const values = new Map(names.map((name) => [name, fallback]));
  for (const [key, value] of Object.entries(patterns).reverse()) {
    if (!(value > 0))
      throw new PipeloraError("PL_CONFIG_INVALID", `${setting}: "${key}" must be positive, got ${value}.`);
    const matches = matchEnds(setting, key, names);
    names.forEach((name, index) => {
      if (matches[index] !== null) values.set(name, value);
    });
  }
  return values;
}

/** The fewest trailing names that select `matched` and nothing else, in the order of their first use. */
export function minimalSuffixes(matched: readonly string[], names: readonly string[]): string[] {
  const chosen = new Set(matched);
  const others = names.filter((name) => !chosen.has(name));
  const suffixes = new Set<string>();
  for (const name of matched) {
    const parts = name.split(".");
    const candidates = parts.map((_, index) => parts.slice(parts.length - 1 - index).join("."));
    suffixes.add(candidates.find((candidate) => !others.some((other) => endsWithAny(other, [candidate]))) ?? name);
  }
  return [...suffixes];
}
