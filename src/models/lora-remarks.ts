import type { LoraSettings } from "../common/lora-settings.ts";
import { modelExperts } from "./experts.ts";
import { endsWithAny, matchEnds } from "./lora-names.ts";
import type { ResolvedLora } from "./lora-targets.ts";
import type { ModelSpec } from "./spec.ts";

/** Settings of LoRA that name nothing of this model, where peft goes on without a word: a sentence each. */
export function loraRemarks(spec: ModelSpec, { settings, targets }: ResolvedLora): string[] {
  const names = spec.modules.map(({ name }) => name);
  const keys = targets.map(({ name, stack }) => stack?.parameter ?? name);
  const unnamed = (suffixes: readonly string[]) =>
    suffixes.filter((suffix) => !names.some((name) => endsWithAny(name, [suffix])));
  const listed = (value: string | readonly string[] | null) => (typeof value === "string" ? [] : (value ?? []));
  const lost = (setting: string, values: readonly string[], effect: string) =>
    values.length === 0 ? [] : [`${setting} ${values.join(", ")}: no module of this model is named so, ${effect}`];
  const patterns = (setting: string, given: Readonly<Record<string, number>>) =>
    Object.keys(given)
      .filter((key) => matchEnds(setting, key, keys).every((match) => match === null))
      .map((key) => `${setting} "${key}" matches nothing that gets LoRA: it changes nothing`);
  const experts = expertLeaves(spec);
  const missed = unnamed(listed(settings.targetModules));
  return [
    ...lost(
      "target_modules",
      missed.filter((name) => !experts.has(leafOf(name))),
      "nothing gets LoRA by it",
    ),
    ...expertRemark(settings, experts),
    ...lost("exclude_modules", unnamed(listed(settings.excludeModules)), "nothing is left out by it"),
    ...patterns("rank_pattern", settings.rankPattern),
    ...patterns("alpha_pattern", settings.alphaPattern),
  ];
}

const leafOf = (name: string) => name.slice(name.lastIndexOf(".") + 1);

/** Last names of experts' matrices: gate_proj, up_proj, down_proj, or w1, w3, w2. */
function expertLeaves(spec: ModelSpec): ReadonlySet<string> {
  return new Set(modelExperts(spec).flatMap(({ linears }) => linears.map(({ name }) => leafOf(name))));
}

function expertRemark(settings: LoraSettings, experts: ReadonlySet<string>): string[] {
  if (typeof settings.targetModules === "string" || settings.targetParameters !== null) return [];
  const named = settings.targetModules.filter((name) => experts.has(leafOf(name)));
  if (named.length === 0) return [];
  return [
    `target_modules ${named.join(", ")}: experts get no LoRA by it, they are parameters: name mlp.experts.gate_up_proj, mlp.experts.down_proj in target_parameters`,
  ];
}
