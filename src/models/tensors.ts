import type { LinearSpec, TensorSpec } from "./spec.ts";

export function parameter(name: string, shape: readonly number[]): TensorSpec {
  return { name, shape, kind: "parameter", dtype: null, persistent: true };
}

/** Weight [out, in], then bias [out], as torch.nn.Linear registers them. */
export function linearTensors(linear: LinearSpec): TensorSpec[] {
  const weight = parameter(`${linear.name}.weight`, [linear.out, linear.in]);
  return linear.bias ? [weight, parameter(`${linear.name}.bias`, [linear.out])] : [weight];
}
