import { elementCount } from "../../common/dtype.ts";

/**
 * A matrix that is trained, float32. Adapter files, checkpoints, the optimizer's groups, the protocol, the plan's memory and
 * `parameters` go by a list of these; a kind of adapter is what it puts there.
 */
export interface NamedMatrix {
  /** As peft's files call it, behind "base_model.model.": "model.layers.0.self_attn.q_proj.lora_A.weight". */
  readonly name: string;
  /** As named_parameters() of peft's model shows it, behind "base_model.model.". */
  readonly parameter: string;
  readonly shape: readonly number[];
  /** Index into spec.layers of the layer that holds it. */
  readonly layer: number;
  /**
   * Where the same values stand once more, under another name: a head that shares the embedding's weight. Files, norms and counts have the
   * matrix once; the two places add up their gradients and make the same updates.
   */
  readonly twin?: { readonly name: string; readonly layer: number };
}

export function matrixElements(matrices: readonly Pick<NamedMatrix, "shape">[]): number {
  return matrices.reduce((sum, { shape }) => sum + elementCount(shape), 0);
}
