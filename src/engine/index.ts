import { createRequire } from "node:module";
import { join } from "node:path";
import { PipeloraError } from "../common/errors.ts";
import { PACKAGE_ROOT } from "../common/root.ts";
import type { NativeAddon } from "./face.ts";

export type * from "./face.ts";
export type * from "./inference.ts";
export type * from "./links.ts";

let loaded: NativeAddon | null = null;

/**
 * Loads the native addon; the only place that does.
 * Errors: PL_ENGINE_UNAVAILABLE if it is not built or does not load here.
 */
export function loadEngine(): NativeAddon {
  if (loaded !== null) return loaded;
  const path = process.env["PIPELORA_ADDON"] ?? join(PACKAGE_ROOT, "build", "native", "pipelora.node");
  try {
    loaded = createRequire(import.meta.url)(path) as NativeAddon;
    return loaded;
  } catch (cause) {
    throw new PipeloraError("PL_ENGINE_UNAVAILABLE", `the native engine did not load from ${path}: ${String(cause)}`, {
      cause,
      hint: "Run `npm run build` (it needs a C++ compiler, CMake, Ninja and oneDNN).",
    });
  }
}
