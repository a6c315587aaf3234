import { availableParallelism } from "node:os";
import type { FloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { QuantizedHold } from "../../common/quantization.ts";
import type { NativeAddon } from "../../engine/index.ts";
import { MAX_QUANT_STATE_BYTES, packedSlots } from "../../formats/quantized-state.ts";
import type { TensorGroup } from "../../formats/safetensors.ts";
import { modelExperts, modelStacks, stackPieces } from "../../models/experts.ts";
import type { LinearSpec } from "../../models/spec.ts";
import type { ModelSetup } from "../planning/model-setup.ts";

/** Values [out, in] of a weight and their dtype. */
export interface WeightValues {
  readonly bytes: Uint8Array;
  readonly dtype: FloatDtype;
}

/**
 * Names of the checkpoint's tensors, each expert's apart where they are to be quantised and the checkpoint holds them at once. Error:
 * PL_CONFIG_INVALID where transformers could not read such experts.
 */
export function quantizableNames({
  spec,
  checkpoint,
  quantization,
}: Pick<ModelSetup, "spec" | "checkpoint" | "quantization">): readonly string[] {
  const { names } = checkpoint!;
  const experts = modelExperts(spec);
  if (quantization === null || experts.length === 0) return names;
  if (experts.some(({ storedAtOnce }) => storedAtOnce)) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `${spec.architecture} has all experts in one parameter, which is no bitsandbytes layer.`,
      {
        hint: "Leave the weights as they are: --load-in-4bit quantises them where they are loaded.",
      },
    );
  }
  const stacks = new Map(modelStacks(spec).map((stack) => [stack.name, stack]));
  return names.flatMap((name) => {
    const stack = stacks.get(name);
    return stack === undefined ? [name] : stackPieces(stack).map((piece) => piece.name);
  });
}

/** The tensors of one linear's serialised form, quantised one linear at a time. */
export function quantizedGroup(
  addon: NativeAddon,
  linear: LinearSpec,
  hold: QuantizedHold,
  values: () => Promise<WeightValues>,
): TensorGroup {
  return {
    tensors: packedSlots(linear, hold).map(({ suffix, dtype, shape }) => {
      const name = `${linear.name}.${suffix}`;
      return shape === null ? { name, mostBytes: MAX_QUANT_STATE_BYTES } : { name, dtype, shape };
    }),
    data: async () => {
      const { bytes, dtype } = await values();
      try {
        const tensors = await addon.quantize(bytes, dtype, [linear.out, linear.in], hold, availableParallelism());
        return new Map(tensors.map(({ suffix, bytes: made }) => [`${linear.name}.${suffix}`, made]));
      } catch (cause) {
        if ((cause as { code?: string }).code !== "PL_QUANTIZATION_INVALID") throw cause;
        throw new PipeloraError("PL_QUANTIZATION_INVALID", `${linear.name}.weight: ${(cause as Error).message}.`, {
          cause,
          hint: "Repair the checkpoint, or leave this layer out with --llm-int8-skip-modules.",
        });
      }
    },
  };
}
