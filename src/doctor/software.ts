import { PipeloraError } from "../common/errors.ts";
import { PACKAGE_VERSION } from "../common/root.ts";
import { type Capabilities, engineChoice, loadEngine } from "../engine/index.ts";
import { type Finding, fail, ok, warn } from "./finding.ts";

const OLDEST_NODE = [20, 15];
const ORIGINS = { named: "named by PIPELORA_ADDON", built: "built here from source", prebuilt: "prebuilt" } as const;

export function nodeFinding(version: string = process.versions.node): Finding {
  const [major, minor] = version.split(".").map(Number);
  const enough = major! > OLDEST_NODE[0]! || (major === OLDEST_NODE[0] && minor! >= OLDEST_NODE[1]!);
  return enough ? ok("node", version) : fail("node", version, `Install Node ${OLDEST_NODE.join(".")} or later.`);
}

/** The native engine, and what it can do; capabilities null: it does not load. */
export function engineFinding(): { finding: Finding; capabilities: Capabilities | null } {
  try {
    const capabilities = loadEngine().capabilities();
    const { path, origin, refused } = engineChoice();
    const found = `${path}, ${ORIGINS[origin]}, version ${capabilities.version}, build ${capabilities.build}`;
    const passed = refused.map((other) => `${other.path} does not fit: ${other.reason}`).join("; ");
    return { finding: ok("engine", passed === "" ? found : `${found} (${passed})`), capabilities };
  } catch (error) {
    if (!(error instanceof PipeloraError)) throw error;
    return { finding: fail("engine", error.message, error.hint ?? "Build it."), capabilities: null };
  }
}

/** Workers of other versions are refused. */
export function versionFinding({ version }: Capabilities): Finding {
  return version === PACKAGE_VERSION
    ? ok("version", version)
    : warn("version", `the engine is ${version}, the programs are ${PACKAGE_VERSION}`, "Build or install both anew.");
}
