import { type Dtype, dtypeBytes, elementCount } from "../common/dtype.ts";
import { activeParameters, tokenRank } from "./experts.ts";
import { biasMatrices } from "./kinds/biases.ts";
import { pairMatrices } from "./kinds/lora.ts";
import { matrixElements, type NamedMatrix } from "./kinds/named-matrix.ts";
import { savedMatrices } from "./kinds/saved-modules.ts";
import { tokenMatrices } from "./kinds/token-rows.ts";
import type { LoraTarget, ResolvedLora } from "./lora-targets.ts";
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
 * Every parameter in the order of a walk of the module tree. With an adapter, names are peft's: "base_model.model." in front, the frozen
 * layer of a module that gets a pair under ".base_layer", that of one that is trained whole under ".original_module", and after them what
 * is trained (float32): lora_A.default, lora_B.default, … `hold` tells how a base parameter is held (its dtype, its packed shape).
 */
export function listParameters(
  spec: ModelSpec,
  hold: (tensor: TensorSpec) => HeldTensor,
  lora: Pick<ResolvedLora, "targets" | "saved" | "biases" | "tokens"> | null,
): ParameterList {
  const { targets, saved, biases, tokens } = lora ?? NOTHING;
  const byModule = new Map<string, LoraTarget[]>();
  for (const target of targets) {
    const module = target.stack === undefined ? target.name : parentOf(target.stack.parameter);
    byModule.set(module, [...(byModule.get(module) ?? []), target]);
  }
  const prefix = lora === null ? "" : "base_model.model.";
  const parameters: HeldParameter[] = [];
  const base = spec.tensors.filter((tensor) => tensor.kind === "parameter");
  const modules = groupByModule(spec, base);
  const trainedBiases = new Set(biases.map(({ module }) => `${module}.bias`));
  const own = { dtype: "float32", trainable: true } as const;
  const push = (matrices: readonly NamedMatrix[]) => {
    for (const { parameter, shape } of matrices) parameters.push({ name: prefix + parameter, shape, ...own });
  };
  for (const [module, tensors] of modules) {
    const wrappers = byModule.get(module) ?? [];
    const whole = saved.find((one) => one.module === module);
    const rows = tokens?.module === module ? tokens : null;
    if (rows !== null) push(tokenMatrices(rows));
    const within = whole !== undefined ? ".original_module" : rows !== null ? ".token_adapter.base_layer" : "";
    for (const tensor of tensors) {
      const leaf = tensor.name.slice(module.length + 1);
      const name = `${module}${within}${".base_layer".repeat(wrappers.length)}.${leaf}`;
      const learns = trainedBiases.has(tensor.name);
      const held = learns ? { shape: tensor.shape, dtype: "float32" as const } : hold(tensor);
      parameters.push({ name: prefix + name, ...held, trainable: learns });
    }
    if (whole !== undefined) push(savedMatrices(whole));
    for (const target of wrappers) push(pairMatrices(target));
  }
  const all = base.reduce((sum, tensor) => sum + elementCount(tensor.shape), 0);
  const added = matrixElements([
    ...targets.flatMap(pairMatrices),
    ...saved.flatMap(savedMatrices),
    ...(tokens === null ? [] : tokenMatrices(tokens)),
  ]);
  const trainable = added + matrixElements(biases.flatMap(biasMatrices));
  return {
    parameters,
    trainable,
    total: all + added,
    active: targets.reduce(
      (sum, pair) => {
        const layer = spec.layers[pair.layer]!;
        return sum + tokenRank(layer, pair) * (pair.in + pair.out) + (pair.dora ? pair.out : 0);
      },
      activeParameters(spec, all) + added - matrixElements(targets.flatMap(pairMatrices)),
    ),
    bytes: parameters.reduce((sum, held) => sum + elementCount(held.shape) * dtypeBytes(held.dtype), 0),
  };
}

const NOTHING = { targets: [], saved: [], biases: [], tokens: null } as const;

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
