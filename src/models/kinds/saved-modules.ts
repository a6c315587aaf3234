import { PipeloraError } from "../../common/errors.ts";
import type { ModelSpec } from "../spec.ts";
import type { NamedMatrix } from "./named-matrix.ts";

/** A module that is trained whole (peft's modules_to_save), its weight [rows, columns] held in float32. */
export interface SavedModule {
  readonly module: string;
  readonly layer: number;
  readonly shape: readonly [number, number];
}

/**
 * Which modules modules_to_save names, by the ends of their paths as peft does. The embedding and the output head can be trained whole;
 * of a tied model each gets a copy of its own, as in peft without ensure_weight_tying.
 * Errors: PL_CONFIG_INVALID for other modules, PL_TARGET_MODULES_UNMATCHED for a name that fits none.
 */
export function resolveSavedModules(spec: ModelSpec, names: readonly string[]): SavedModule[] {
  const found = new Map<string, SavedModule>();
  for (const wanted of names) {
    const met = spec.modules.filter(({ name }) => name.endsWith(wanted) && name !== "");
    if (met.length === 0) {
      throw new PipeloraError(
        "PL_TARGET_MODULES_UNMATCHED",
        `modules_to_save "${wanted}" matches no module of this model.`,
        {
          hint: `Its embedding is ${spec.layers[0]!.name}, its head ${spec.layers.at(-1)!.name}.`,
        },
      );
    }
    for (const { name, className } of met) {
      const layer = spec.layers.findIndex(
        (one) => one.name === name && (one.kind === "embedding" || one.kind === "head"),
      );
      if (layer < 0) {
        throw new PipeloraError(
          "PL_CONFIG_INVALID",
          `modules_to_save names ${name} of class ${className}: the embedding and the output head are trained whole, other modules are not.`,
          { hint: "Leave it out, or name its linears in target_modules." },
        );
      }
      found.set(name, { module: name, layer, shape: [spec.shape.vocab, spec.shape.hidden] });
    }
  }
  return [...found.values()].sort((a, b) => a.layer - b.layer);
}

export function savedMatrices({ module, layer, shape }: SavedModule): NamedMatrix[] {
  return [{ name: `${module}.weight`, parameter: `${module}.modules_to_save.default.weight`, shape, layer }];
}
