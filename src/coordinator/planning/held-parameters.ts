import { packedShape } from "../../formats/quantized-state.ts";
import { type HeldTensor, listParameters, type ParameterList } from "../../models/parameters.ts";
import type { TensorSpec } from "../../models/spec.ts";
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
  const hold = ({ name, shape }: TensorSpec): HeldTensor => packed.get(name) ?? { shape, dtype: holdDtype };
  return listParameters(spec, hold, lora?.targets ?? null);
}
