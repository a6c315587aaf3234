import { MX_BLOCK, mxNames } from "../common/quantization.ts";
import type { BlockLayer, ExpertsSpec, LayerSpec, LinearSpec, ModelSpec, TensorSpec } from "./spec.ts";
import { linearTensors, parameter } from "./tensors.ts";

/** A parameter of all experts at once, which checkpoints hold whole or as one tensor an expert (and projection). */
export interface ExpertStack {
  /** As transformers 5 names it: "model.layers.0.mlp.experts.gate_up_proj", "….down_proj_bias". */
  readonly name: string;
  /** [N, out, in], [N, in, out] where transposed; a bias [N, out]. */
  readonly shape: readonly number[];
  readonly transposed: boolean;
  /** What stands in one expert's slice, one below the other: the tensor's name with "*" for the expert, its rows. */
  readonly parts: readonly { readonly name: string; readonly rows: number }[];
  /** Of a bias: null. */
  readonly in: number | null;
}

/** The parameters of a block's experts, in the order that transformers registers them. */
export function expertStacks({ name, count, linears, transposed }: ExpertsSpec): ExpertStack[] {
  const down = linears.filter(({ role }) => role === "down");
  const inputs = linears.filter(({ role }) => role !== "down");
  const stacks = (leaf: string, of: readonly LinearSpec[]): ExpertStack[] => {
    const input = of[0]!.in;
    const out = of.reduce((sum, linear) => sum + linear.out, 0);
    const parts = (suffix: string) => of.map((linear) => ({ name: `${linear.name}.${suffix}`, rows: linear.out }));
    const shape = transposed ? [count, input, out] : [count, out, input];
    const weight = { name: `${name}.${leaf}`, shape, transposed, parts: parts("weight"), in: input };
    if (!of[0]!.bias) return [weight];
    return [
      weight,
      { name: `${name}.${leaf}_bias`, shape: [count, out], transposed: false, parts: parts("bias"), in: null },
    ];
  };
  return [...stacks("gate_up_proj", inputs), ...stacks("down_proj", down)];
}

/** `pattern` with the expert's number in its "*". */
export function ofExpert(pattern: string, expert: number): string {
  return pattern.replace("*", String(expert));
}

/** The linears of every expert of a block, expert by expert. */
export function expertLinears({ experts }: BlockLayer): LinearSpec[] {
  if (experts === undefined) return [];
  return Array.from({ length: experts.count }, (_, expert) =>
    experts.linears.map((linear) => ({ ...linear, name: ofExpert(linear.name, expert) })),
  ).flat();
}

/** Experts of all blocks. */
export function modelExperts(spec: ModelSpec): ExpertsSpec[] {
  return spec.layers.flatMap((layer) => (layer.kind === "block" && layer.experts !== undefined ? [layer.experts] : []));
}

/** The stack's tensors of one expert each. */
export function stackPieces(stack: ExpertStack): TensorSpec[] {
  return Array.from({ length: stack.shape[0]! }, (_, expert) =>
    stack.parts.map(({ name, rows }) =>
      parameter(ofExpert(name, expert), stack.in === null ? [rows] : [rows, stack.in]),
    ),
  ).flat();
}

/**
 * The model's tensors as a checkpoint names them. `holds`: whether it holds one of that name; experts' parameters stand there at once
 * where it does, else each expert's apart. null: as a checkpoint is written anew.
 */
export function storedTensors(spec: ModelSpec, holds: ((name: string) => boolean) | null): TensorSpec[] {
  const stacks = new Map<string, { readonly stack: ExpertStack; readonly atOnce: boolean; readonly packed: boolean }>();
  for (const experts of modelExperts(spec)) {
    for (const stack of expertStacks(experts)) {
      const atOnce = holds === null ? experts.storedAtOnce : holds(stack.name);
      stacks.set(stack.name, { stack, atOnce, packed: experts.packed !== null && stack.in !== null });
    }
  }
  return spec.tensors.flatMap((tensor): TensorSpec[] => {
    const found = stacks.get(tensor.name);
    if (found?.packed === true) return packedTensors(found.stack);
    if (found === undefined || found.atOnce) return [{ ...tensor, name: tensor.stored ?? tensor.name }];
    return stackPieces(found.stack);
  });
}

/** Codes and scales of a stack in MXFP4. */
function packedTensors({ name, shape, parts, in: input }: ExpertStack): TensorSpec[] {
  const out = parts.reduce((sum, { rows }) => sum + rows, 0);
  const { blocks, scales } = mxNames(name);
  const bytes = (tensor: string, extents: readonly number[]): TensorSpec => ({
    ...parameter(tensor, extents),
    dtype: "uint8",
  });
  const groups = input! / MX_BLOCK;
  return [bytes(blocks, [shape[0]!, out, groups, MX_BLOCK / 2]), bytes(scales, [shape[0]!, out, groups])];
}

/** Weights that a token goes through, of the model's: all but those of experts that it does not choose. */
export function activeParameters(spec: ModelSpec, total: number): number {
  const idle = modelExperts(spec).reduce((sum, experts) => {
    const all = expertStacks(experts).reduce((elements, { shape }) => elements + shape.reduce((a, b) => a * b, 1), 0);
    return sum + (all / experts.count) * (experts.count - experts.router.chosen);
  }, 0);
  return total - idle;
}

/** Parameters of all blocks' experts. */
export function modelStacks(spec: ModelSpec): ExpertStack[] {
  return modelExperts(spec).flatMap(expertStacks);
}

/** The model's names of tensors that checkpoints call otherwise, with that name. */
export function storedAliases(spec: ModelSpec): ReadonlyMap<string, string> {
  return new Map(spec.tensors.flatMap(({ name, stored }) => (stored === undefined ? [] : [[name, stored]])));
}

/** Tensors that a worker needs of a block's experts, by one expert's names, the router's by its own. */
export function expertWeights(experts: ExpertsSpec): string[] {
  const { router, count, linears } = experts;
  const routed = linearTensors(router.linear).map(({ name }) => name);
  const one = linears.flatMap((linear) => linearTensors(linear).map(({ name }) => name));
  const all = Array.from({ length: count }, (_, expert) => one.map((name) => ofExpert(name, expert))).flat();
  return [...routed, ...(router.correction === null ? [] : [router.correction]), ...all];
}

/** The same weights by every name that a checkpoint may hold them under. */
export function storedNames(spec: ModelSpec, names: readonly string[]): string[] {
  const aliases = storedAliases(spec);
  const wanted = new Set(names);
  const stacks = modelStacks(spec).filter((stack) => wanted.has(ofExpert(stack.parts[0]!.name, 0)));
  return [
    ...names.map((name) => aliases.get(name) ?? name),
    ...stacks.flatMap(({ name }) => [name, ...Object.values(mxNames(name))]),
  ];
}

/** Ranks that a token goes through: of a parameter of all experts those of the experts it chooses. */
export function tokenRank(
  layer: LayerSpec,
  { r, stack }: { readonly r: number; readonly stack?: { readonly experts: number } },
): number {
  if (stack === undefined || layer.kind !== "block") return r;
  return (r / stack.experts) * (layer.experts?.router.chosen ?? 0);
}
