import { spawnSync } from "node:child_process";
import { accessSync, constants, existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { lockSync } from "proper-lockfile";
import { PACKAGE_ROOT } from "../../common/root.ts";
import { BUILT_ADDON } from "./candidates.ts";

/** A build takes minutes, several at once on a small machine more. */
const BUILD_MINUTES = 60;
const POLL_MS = 500;

/** An installed package builds when it must; in a checkout that is its developer's to say (`npm run build`). */
export function mayBuild(): boolean {
  return !existsSync(join(PACKAGE_ROOT, "src")) && existsSync(join(PACKAGE_ROOT, "native", "CMakeLists.txt"));
}

/**
 * Builds the addon from the package's sources, said on stderr. Of several processes one builds and the others wait. Returns why it was
 * not built; null: it is at BUILT_ADDON.
 */
export function buildAddon(because: string): string | null {
  const folder = join(PACKAGE_ROOT, "build");
  try {
    mkdirSync(folder, { recursive: true });
    accessSync(folder, constants.W_OK);
  } catch {
    return `${folder} can't be written by this user`;
  }
  const release = lock(folder);
  if (release === null) return `another process has been building it for ${BUILD_MINUTES} minutes`;
  try {
    if (existsSync(BUILT_ADDON)) return null;
    process.stderr.write(`Building the native engine from source, for ${because}. This takes a few minutes.\n`);
    const script = join(PACKAGE_ROOT, "scripts", "build-native.mjs");
    const child = spawnSync(process.execPath, [script, "--addon"], {
      encoding: "utf8",
      stdio: ["ignore", "ignore", "pipe"],
      timeout: BUILD_MINUTES * 60_000,
    });
    if (child.status === 0) return null;
    return (
      child.error?.message ??
      (child.stderr.trim().split("\n").slice(-20).join("\n") || `it ended with ${child.status ?? child.signal}`)
    );
  } finally {
    release();
  }
}

/** Waits for the lock, at most as long as a build may take; null: it was not had. */
function lock(folder: string): (() => void) | null {
  const deadline = Date.now() + BUILD_MINUTES * 60_000;
  for (;;) {
    try {
      return lockSync(folder, { lockfilePath: join(folder, "native.lock"), stale: BUILD_MINUTES * 60_000 });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ELOCKED") throw error;
      if (Date.now() > deadline) return null;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, POLL_MS);
    }
  }
}
