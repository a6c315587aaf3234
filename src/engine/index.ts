import { createRequire } from "node:module";
import { PipeloraError } from "../common/errors.ts";
import { type AddonChoice, chooseAddon } from "./addon/choice.ts";
import type { NativeAddon } from "./face.ts";

export type { AddonChoice } from "./addon/choice.ts";
export type * from "./description.ts";
export type * from "./face.ts";
export type * from "./inference.ts";
export type * from "./links.ts";

let loaded: { readonly addon: NativeAddon; readonly choice: AddonChoice } | null = null;

/**
 * Loads the native addon; the only place that does.
 * Errors: PL_ENGINE_UNAVAILABLE if it is not built or does not load here.
 */
export function loadEngine(): NativeAddon {
  loaded ??= load();
  return loaded.addon;
}

/** Which addon loadEngine() took, in words for a log: its path, where it comes from, and what was passed over. */
export function engineOrigin(): string {
  loaded ??= load();
  const { path, origin, refused } = loaded.choice;
  const passed = refused.map((other) => `; not ${other.path}: ${other.reason}`).join("");
  return `native engine: ${path} (${origin})${passed}`;
}

/** Which addon loadEngine() took. */
export function engineChoice(): AddonChoice {
  loaded ??= load();
  return loaded.choice;
}

function load(): { addon: NativeAddon; choice: AddonChoice } {
  const choice = chooseAddon();
  try {
    return { addon: createRequire(import.meta.url)(choice.path) as NativeAddon, choice };
  } catch (cause) {
    throw new PipeloraError(
      "PL_ENGINE_UNAVAILABLE",
      `the native engine did not load from ${choice.path}: ${String(cause)}`,
      {
        cause,
        hint: "Build it anew: `npm run build` in a checkout (it needs a C++ compiler, CMake, Ninja and oneDNN).",
      },
    );
  }
}
