import { packedShape } from "../../formats/quantized-state.ts";
import { type ExpertStack, expertStacks, modelExperts, ofExpert } from "../../models/experts.ts";
import { type HeldTensor, listParameters, type ParameterList } from "../../models/parameters.ts";
import type { ExpertsSpec, TensorSpec } from "../../models/spec.ts";
import type { ModelSetup } from "./model-setup.ts";

/**
 * Every parameter as transformers' `named_parameters()` shows it: linears quantised in 4 bits as uint8 [(out in + 1) / 2, 1], in 8
 * bits as int8 [out, in], the rest in the holding dtype.
 */
export function heldParameters({ spec, lora, holdDtype, quantization }: ModelSetup): ParameterList {
  const packed = new Map<string, HeldTensor>();
  for (const linear of quantization?.linears ?? []) {
    packed.set(
      `${linear.name}.weight`,
      quantization!.settings.method === "4bit"
        ? { shape: packedShape(linear), dtype: "uint8" }
        : { shape: [linear.out, linear.in], dtype: "int8" },
    );
  }
  for (const experts of modelExperts(spec)) {
    for (const stack of expertStacks(experts)) {
      const shape = packedStack(experts, stack, packed);
      if (shape !== null) packed.set(stack.name, shape);
    }
  }
  const hold = ({ name, shape }: TensorSpec): HeldTensor => packed.get(name) ?? { shape, dtype: holdDtype };
  return listParameters(spec, hold, lora);
}

/** A stack of experts' weights as it is held in few bits: a row of codes an expert. null: it is not. */
function packedStack(
  { packed, count }: ExpertsSpec,
  stack: ExpertStack,
  linears: ReadonlyMap<string, HeldTensor>,
): HeldTensor | null {
  if (stack.in === null) return null;
  const out = stack.parts.reduce((sum, { rows }) => sum + rows, 0);
  if (packed === "mxfp4") return { shape: [count, out, stack.in / 2], dtype: "uint8" };
  const first = stack.parts.map(({ name }) => linears.get(ofExpert(name, 0)));
  if (first.some((one) => one === undefined)) return null;
  if (first[0]!.dtype === "int8") return { shape: [count, out, stack.in], dtype: "int8" };
  return { shape: [count, first.reduce((sum, one) => sum + one!.shape[0]!, 0), 1], dtype: "uint8" };
}
