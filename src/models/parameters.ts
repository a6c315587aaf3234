import { type Dtype, dtypeBytes, elementCount } from "../common/dtype.ts";
import { activeParameters, tokenRank } from "./experts.ts";
import { pairMatrices } from "./kinds/lora.ts";
import type { LoraTarget } from "./lora-targets.ts";
import type { ModelSpec, TensorSpec } from "./spec.ts";

/** A tensor as it lies in memory: a packed 4-bit weight has another shape and dtype than the checkpoint's. */
export interface HeldTensor {
  readonly shape: readonly number[];
  readonly dtype: Dtype;
}

/** One parameter as `named_parameters()` of the peft model shows it. */
export interface HeldParameter extends HeldTensor {
  readonly name: string;
  readonly trainable: boolean;
}

export interface ParameterList {
  readonly parameters: readonly HeldParameter[];
  /** Elements of the LoRA matrices. */
  readonly trainable: number;
  /** Elements of every parameter, the base counted by the model's own shapes (as peft's print_trainable_parameters does for packed weights). */
  readonly total: number;
  /** Those of them that a token goes through: of each block's experts as many as it chooses. */
  readonly active: number;
  /** Bytes of everything listed, as held. */
  readonly bytes: number;
}

/**
 * Every parameter in the order of a walk of the module tree. With LoRA targets, names are peft's: "base_model.model." in
 * front, the frozen layer under ".base_layer", the pair after it as lora_A.default and lora_B.default (float32).
 * `hold` tells how a base parameter is held (its dtype, its packed shape).
 */
export function listParameters(
  spec: ModelSpec,
  hold: (tensor: TensorSpec) => HeldTensor,
  targets: readonly LoraTarget[] | null,
): ParameterList {
  const byModule = new Map<string, LoraTarget[]>();
  for (const target of targets ?? []) {
    const module = target.stack === undefined ? target.name : parentOf(target.stack.parameter);
    byModule.set(module, [...(byModule.get(module) ?? []), target]);
  }
  const prefix = targets === null ? "" : "base_model.model.";
  const parameters: HeldParameter[] = [];
  const base = spec.tensors.filter((tensor) => tensor.kind === "parameter");
  const modules = groupByModule(spec, base);
  for (const [module, tensors] of modules) {
    const wrappers = byModule.get(module) ?? [];
    for (const tensor of tensors) {
      const leaf = tensor.name.slice(module.length + 1);
      const name = `${module}${".base_layer".repeat(wrappers.length)}.${leaf}`;
      parameters.push({ name: prefix + name, ...hold(tensor), trainable: false });
    }
    const lora = { dtype: "float32", trainable: true } as const;
    for (const target of wrappers) {
      for (const { parameter, shape } of pairMatrices(target))
        parameters.push({ name: prefix + parameter, shape, ...lora });
    }
  }
  const own = base.reduce((sum, tensor) => sum + elementCount(tensor.shape), 0);
  const trainable = (targets ?? []).reduce((sum, target) => sum + target.r * (target.in + target.out), 0);
  return {
    parameters,
    trainable,
    total: own + trainable,
    active: (targets ?? []).reduce(
      (sum, pair) => sum + tokenRank(spec.layers[pair.layer]!, pair) * (pair.in + pair.out),
      activeParameters(spec, own),
    ),
    bytes: parameters.reduce((sum, held) => sum + elementCount(held.shape) * dtypeBytes(held.dtype), 0),
  };
}

const parentOf = (name: string) => name.slice(0, name.lastIndexOf("."));

/** Every parameter in the dtype given, unpacked. */
export function holdAs(dtype: Dtype): (tensor: TensorSpec) => HeldTensor {
  return (tensor) => ({ shape: tensor.shape, dtype: tensor.dtype ?? dtype });
}

/** Parameters by the module that owns them, in order; a tied head owns none but may still be a target. */
function groupByModule(spec: ModelSpec, parameters: readonly TensorSpec[]): Map<string, TensorSpec[]> {
  const modules = new Map<string, TensorSpec[]>();
  for (const tensor of parameters) {
    const module = tensor.name.slice(0, tensor.name.lastIndexOf("."));
    modules.set(module, [...(modules.get(module) ?? []), tensor]);
  }
  for (const [alias] of spec.tied) {
    const module = alias.slice(0, alias.lastIndexOf("."));
    if (!modules.has(module)) modules.set(module, []);
  }
  return modules;
}
