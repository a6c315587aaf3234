import type { Dtype } from "../../common/dtype.ts";
import type { ModelSpec } from "../../models/spec.ts";
import type { DeviceMap, MaxMemory } from "../devices.ts";
import { autoDeviceMap } from "./auto-device-map.ts";
import { balancedMemory } from "./balanced-memory.ts";
import { type ModuleSizes, moduleSizes, sizingOf } from "./module-sizes.ts";
import { moduleTree } from "./module-tree.ts";

export type AccelerateStrategy = "auto" | "balanced" | "balanced_low_0" | "sequential";

export interface AccelerateRequest {
  readonly strategy: AccelerateStrategy;
  readonly maxMemory: MaxMemory;
  /** Whether max_memory is the user's own. */
  readonly userGiven: boolean;
  readonly quantization: "none" | "int8" | "int4";
  /** dtype in which unquantised weights are loaded. */
  readonly loadDtype: Dtype;
}

export interface AccelerateResult {
  readonly moduleTotal: number;
  readonly balancedMemory: MaxMemory;
  readonly deviceMap: DeviceMap;
}

/**
 * The same placement that accelerate 1.15 makes for transformers' `device_map`, offload to cpu and disk included.
 * Throws MissingDeviceError where accelerate raises KeyError.
 */
export function accelerateDeviceMap(spec: ModelSpec, request: AccelerateRequest): AccelerateResult {
  const tree = moduleTree(spec);
  const sizes = accelerateSizes(spec, request);
  const budgets =
    request.strategy === "sequential"
      ? request.maxMemory
      : balancedMemory(tree, sizes, request.maxMemory, {
          lowZero: request.strategy === "balanced_low_0",
          userGiven: request.userGiven,
          noSplitClasses: spec.noSplitModuleClasses,
        });
  return {
    moduleTotal: sizes.get("") ?? 0,
    balancedMemory: budgets,
    deviceMap: autoDeviceMap(tree, sizes, budgets, spec.tied),
  };
}

export function accelerateSizes(
  spec: ModelSpec,
  { quantization, loadDtype }: Pick<AccelerateRequest, "quantization" | "loadDtype">,
): ModuleSizes {
  return moduleSizes(spec, sizingOf(spec, quantization, loadDtype));
}
