import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { PACKAGE_ROOT } from "../../common/root.ts";

/** Where an addon comes from: named in PIPELORA_ADDON, built from source here, or built elsewhere and installed as a package. */
export type AddonOrigin = "named" | "built" | "prebuilt";

export interface AddonFile {
  readonly path: string;
  readonly origin: AddonOrigin;
}

/** Where a build from source leaves the addon. */
export const BUILT_ADDON = join(PACKAGE_ROOT, "build", "native", "pipelora.node");

/** The addons that are here, in order of preference. One that was built on this machine comes first. */
export function addonsHere(): AddonFile[] {
  const named = process.env["PIPELORA_ADDON"];
  if (named !== undefined && named !== "") return [{ path: named, origin: "named" }];
  const here: AddonFile[] = existsSync(BUILT_ADDON) ? [{ path: BUILT_ADDON, origin: "built" }] : [];
  const prebuilt = prebuiltAddon();
  return prebuilt === null ? here : [...here, { path: prebuilt, origin: "prebuilt" }];
}

/** The optional package for this platform; null: not installed, or there is none for it. */
function prebuiltAddon(): string | null {
  const name = `@pipelora/native-${process.platform}-${process.arch}/package.json`;
  try {
    const path = join(dirname(createRequire(join(PACKAGE_ROOT, "package.json")).resolve(name)), "pipelora.node");
    return existsSync(path) ? path : null;
  } catch {
    return null;
  }
}
