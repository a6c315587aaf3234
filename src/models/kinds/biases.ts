import { PipeloraError } from "../../common/errors.ts";
import type { ModelSpec } from "../spec.ts";
import type { NamedMatrix } from "./named-matrix.ts";

/** peft's bias: which of the model's own biases are trained. */
export type BiasMode = "none" | "all" | "lora_only";

/** A linear's bias that is trained. */
export interface TrainedBias {
  readonly module: string;
  readonly layer: number;
  readonly size: number;
  /** It has a pair too, so that peft has it under base_layer. */
  readonly adapted: boolean;
}

/** Error: PL_CONFIG_INVALID for biases outside linears (a router's, experts'), which are not trained. */
export function resolveBiases(spec: ModelSpec, mode: BiasMode, adapted: ReadonlySet<string>): TrainedBias[] {
  if (mode === "none") return [];
  const found: TrainedBias[] = [];
  spec.layers.forEach((layer, index) => {
    if (layer.kind !== "block") return;
    for (const { name, bias, out } of layer.linears) {
      if (bias && (mode === "all" || adapted.has(name))) {
        found.push({ module: name, layer: index, size: out, adapted: adapted.has(name) });
      }
    }
  });
  const known = new Set(found.map(({ module }) => `${module}.bias`));
  const other = spec.tensors.find(
    ({ name, kind }) => kind === "parameter" && name.endsWith(".bias") && !known.has(name),
  );
  if (mode === "all" && other !== undefined) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `bias all: ${other.name} is no bias of a linear layer, and is not trained.`,
      {
        hint: "Use bias lora_only, or none.",
      },
    );
  }
  return found;
}

export function biasMatrices({ module, layer, size, adapted }: TrainedBias): NamedMatrix[] {
  const name = adapted ? `${module}.base_layer.bias` : `${module}.bias`;
  return [{ name, parameter: name, shape: [size], layer }];
}
