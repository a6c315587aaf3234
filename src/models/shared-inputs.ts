import type { LoraTarget } from "./lora-targets.ts";
import type { LinearRole, ModelSpec } from "./spec.ts";

/** What a linear of a block takes. */
const INPUTS: Readonly<Record<LinearRole, "block" | "mlp" | "own">> = {
  ...{ qkv: "block", q: "block", k: "block", v: "block", q_a: "block", kv_a: "block" },
  ...{
    delta_qkv: "block",
    delta_z: "block",
    delta_b: "block",
    delta_a: "block",
    delta_qkvz: "block",
    delta_ba: "block",
  },
  ...{ gate_up: "mlp", gate: "mlp", up: "mlp", shared_gate: "mlp", router: "mlp" },
  ...{ o: "own", down: "own", q_b: "own", kv_b: "own" },
};

/** Targets in blocks by what they take: those of one input beside each other, inputs and modules in the model's order. */
export function sharedInputs(spec: ModelSpec, targets: readonly LoraTarget[]): LoraTarget[][] {
  const groups = new Map<string, LoraTarget[]>();
  for (const target of targets) {
    const kind =
      target.role === "embedding" || target.role === "head" || target.role === "experts" ? "own" : INPUTS[target.role];
    const input = kind === "own" ? target.name : kind === "mlp" && spec.rules.parallel ? "block" : kind;
    const key = `${target.layer} ${input}`;
    groups.set(key, [...(groups.get(key) ?? []), target]);
  }
  return [...groups.values()];
}
