import type { FloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import { expertLinears } from "../../models/experts.ts";
import type { ModelSpec } from "../../models/spec.ts";
import type { Device } from "../../plan/devices.ts";
import { suitsE4m3 } from "../../plan/index.ts";

/** The first compute capability whose tensor cores multiply e4m3 numbers (Ada). */
const LEAST_CAPABILITY = [8, 9] as const;

/**
 * Refuses --fp8 where a device or the compute dtype does not allow it. Warns once of linears that stay in the compute dtype because their
 * widths are not multiples of 16. Errors: PL_DEVICE_UNAVAILABLE, PL_CONFIG_INVALID.
 */
export function fp8Warning(
  devices: readonly Pick<Device, "kind" | "name" | "capability">[],
  dtype: FloatDtype,
  spec: Pick<ModelSpec, "layers">,
): string | null {
  const lacking = devices.find(
    ({ kind, capability }) => kind === "cpu" || (capability !== undefined && isOlder(capability)),
  );
  if (lacking !== undefined) {
    const { kind, name, capability } = lacking;
    const what = kind === "cpu" ? "a CPU" : `${name ?? "a GPU"} of compute capability ${capability!.join(".")}`;
    throw new PipeloraError(
      "PL_DEVICE_UNAVAILABLE",
      `--fp8 needs GPUs of compute capability ${LEAST_CAPABILITY.join(".")} or later (Ada, Hopper, Blackwell); got ${what}.`,
      { hint: "Leave --fp8 out, or run on such GPUs." },
    );
  }
  if (dtype === "float32") {
    throw new PipeloraError("PL_CONFIG_INVALID", "--fp8 with products in float32: outputs are written in 16 bits.", {
      hint: "Give --compute-dtype bfloat16, or leave --fp8 out.",
    });
  }
  const blocks = spec.layers.filter((layer) => layer.kind === "block");
  const linears = blocks.flatMap((block) => [...block.linears, ...expertLinears(block)]);
  const left = linears.filter((linear) => !suitsE4m3(linear));
  const [first] = left;
  if (first === undefined) return null;
  const shape = `${first.name} is ${first.out} x ${first.in}`;
  return `--fp8: ${left.length} of ${linears.length} linears stay in ${dtype}, and those that share their input: widths must be multiples of 16, and ${shape}`;
}

function isOlder([major, minor]: readonly [number, number]): boolean {
  const [least, leastMinor] = LEAST_CAPABILITY;
  return major < least || (major === least && minor < leastMinor);
}
