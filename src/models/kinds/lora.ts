import type { LoraTarget } from "../lora-targets.ts";
import type { NamedMatrix } from "./named-matrix.ts";

/** What names and shapes of a pair come from. */
export type PairShape = Pick<LoraTarget, "name" | "r" | "in" | "out">;

/** Names of a pair's matrices: A [r, in], B [out, r]. */
export function pairNames(module: string): { readonly a: string; readonly b: string } {
  return { a: `${module}.lora_A.weight`, b: `${module}.lora_B.weight` };
}

export function pairMatrices({ name, r, in: input, out, layer }: PairShape & Pick<LoraTarget, "layer">): NamedMatrix[] {
  const { a, b } = pairNames(name);
  return [
    { name: a, parameter: `${name}.lora_A.default.weight`, shape: [r, input], layer },
    { name: b, parameter: `${name}.lora_B.default.weight`, shape: [out, r], layer },
  ];
}
