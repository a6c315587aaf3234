import type { LoraSettings } from "../../common/lora-settings.ts";
import type { LoraTarget } from "../lora-targets.ts";
import type { ModelSpec } from "../spec.ts";
import type { NamedMatrix } from "./named-matrix.ts";

/** Names of a linear's pair: A [r, in], B [out, r]; and of an embedding's, which peft calls otherwise: A [r, vocab], B [hidden, r]. */
export function pairNames(module: string, role?: LoraTarget["role"]): { readonly a: string; readonly b: string } {
  return role === "embedding"
    ? { a: `${module}.lora_embedding_A`, b: `${module}.lora_embedding_B` }
    : { a: `${module}.lora_A.weight`, b: `${module}.lora_B.weight` };
}

/** What DoRA learns beside: the length of each row of the weight. */
export const magnitudeName = (module: string) => `${module}.lora_magnitude_vector`;

/** A base's weight that peft saves beside the adapter. */
export interface SavedBase {
  /** As a matrix's name. */
  readonly name: string;
  /** The checkpoint's tensor. */
  readonly tensor: string;
}

/** Modules of these names are embeddings to peft. */
const EMBEDDINGS = ["embed_tokens", "lm_head"];

/** peft's save_embedding_layers "auto": of embeddings and heads that get pairs the bases too, where target_modules names one of them. */
export function savedBases(spec: ModelSpec, targets: readonly LoraTarget[], settings: LoraSettings): SavedBase[] {
  const { targetModules, trainableTokenIndices } = settings;
  const ends = targets.filter(({ role }) => role === "embedding" || role === "head");
  const named =
    typeof targetModules === "string"
      ? ends.some(({ name }) => EMBEDDINGS.includes(name.split(".").at(-1)!))
      : targetModules.some((name) => EMBEDDINGS.includes(name));
  if (!named || trainableTokenIndices !== null) return [];
  return ends.map(({ name, layer }) => {
    const own = spec.layers[layer]!;
    return { name: `${name}.base_layer.weight`, tensor: own.kind === "block" ? "" : own.weight };
  });
}

export function pairMatrices(target: Omit<LoraTarget, "alpha" | "scale" | "dropout" | "moduleId">): NamedMatrix[] {
  const { name, role, r, in: input, out, layer, dora } = target;
  const { a, b } = pairNames(name, role);
  const parameter = (matrix: string) =>
    matrix.endsWith(".weight") ? matrix.replace(/\.weight$/, ".default.weight") : `${matrix}.default`;
  const magnitude = magnitudeName(name);
  return [
    { name: a, parameter: parameter(a), shape: [r, input], layer },
    { name: b, parameter: parameter(b), shape: [out, r], layer },
    ...(dora ? [{ name: magnitude, parameter: `${magnitude}.default.weight`, shape: [out], layer }] : []),
  ];
}
