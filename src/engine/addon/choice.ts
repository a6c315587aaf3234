import { PipeloraError } from "../../common/errors.ts";
import { buildAddon, mayBuild } from "./build.ts";
import { type AddonFile, addonsHere, BUILT_ADDON } from "./candidates.ts";
import { misfit } from "./trial.ts";

export interface AddonChoice extends AddonFile {
  /** Addons that were passed over, and why. */
  readonly refused: readonly { readonly path: string; readonly reason: string }[];
}

/**
 * The addon that this process loads. One that was built elsewhere is first tried in a child process. If none fits, an installed package
 * builds its own. Error: PL_ENGINE_UNAVAILABLE where there is none, and none can be built.
 */
export function chooseAddon(): AddonChoice {
  const refused: { path: string; reason: string }[] = [];
  for (const addon of addonsHere()) {
    const reason = addon.origin === "prebuilt" ? misfit(addon.path) : null;
    if (reason === null) return { ...addon, refused };
    refused.push({ path: addon.path, reason });
  }
  const why = refused.map(({ path, reason }) => `${path} does not fit this machine (${reason})`).join("; ");
  const because = why === "" ? "no prebuilt one is installed" : why;
  if (!mayBuild()) {
    throw new PipeloraError("PL_ENGINE_UNAVAILABLE", `there is no native engine: ${because}`, {
      hint: "Run `npm run build` (it needs a C++ compiler, CMake, Ninja and oneDNN).",
    });
  }
  const failure = buildAddon(because);
  if (failure === null) return { path: BUILT_ADDON, origin: "built", refused };
  throw new PipeloraError(
    "PL_ENGINE_UNAVAILABLE",
    `there is no native engine: ${because}; and it was not built from source: ${failure}`,
    {
      hint: "Install a C++ compiler, CMake, Ninja and oneDNN (Debian: g++ cmake ninja-build libdnnl-dev), and start again as a user who may write the package's folder.",
    },
  );
}
