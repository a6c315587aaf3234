import type { FloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { Config } from "../../config/options.ts";
import type { Device } from "../../plan/devices.ts";
import type { ModelSetup } from "./model-setup.ts";

export interface ComputeDtype {
  readonly dtype: FloatDtype;
  /** What was asked for and is not followed. */
  readonly warning: string | null;
}

/**
 * The one dtype of products and activations: compute_dtype if given; else a 4-bit base's compute dtype, from the flag or the checkpoint;
 * else the weights' dtype on GPUs. A CPU uses float32 in place of dtypes that it does not compute in. Error: PL_DEVICE_UNAVAILABLE where
 * compute_dtype names a dtype that a device lacks.
 */
export function computeDtype(
  config: Pick<Config, "compute_dtype" | "bnb_4bit_compute_dtype">,
  { quantization, spec, holdDtype }: Pick<ModelSetup, "quantization" | "spec" | "holdDtype">,
  devices: readonly Pick<Device, "kind">[],
): ComputeDtype {
  const onCpu = devices.some(({ kind }) => kind === "cpu");
  const { compute_dtype: asked, bnb_4bit_compute_dtype: fourBit } = config;
  if (asked !== "auto") {
    if (onCpu && asked === "float16") {
      throw new PipeloraError(
        "PL_DEVICE_UNAVAILABLE",
        "--compute-dtype float16: CPUs compute in float32 or bfloat16.",
        {
          hint: "Use --compute-dtype float32 or bfloat16, leave it out, or run on GPUs.",
        },
      );
    }
    const ignored = fourBit !== null && fourBit !== asked;
    const warning = `--compute-dtype ${asked} decides: all products and activations have one dtype, so --bnb-4bit-compute-dtype ${fourBit} is not followed`;
    return { dtype: asked, warning: ignored ? warning : null };
  }
  const wanted = quantization?.settings.method === "4bit" ? (fourBit ?? spec.quantization?.computeDtype ?? null) : null;
  if (wanted === null) return { dtype: onCpu ? "float32" : holdDtype, warning: null };
  if (!onCpu || wanted !== "float16") return { dtype: wanted, warning: null };
  return {
    dtype: "float32",
    warning: "CPUs do not compute in float16: bnb_4bit_compute_dtype is float32 here, which costs speed, not precision",
  };
}
