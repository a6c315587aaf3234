import { spawnSync } from "node:child_process";
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { PACKAGE_ROOT } from "../../common/root.ts";
import { BUILT_ADDON } from "./candidates.ts";

/** A build takes minutes, and longer where several run on a small machine. */
const BUILD_MINUTES = 60;
const POLL_MS = 500;
/** By then a lock names its holder. */
const WRITTEN_MS = 10_000;

/** An installed package builds its addon when it has to. In a checkout the developer does (`npm run build`). */
export function mayBuild(): boolean {
  return !existsSync(join(PACKAGE_ROOT, "src")) && existsSync(join(PACKAGE_ROOT, "native", "CMakeLists.txt"));
}

/**
 * Builds the addon from the package's sources and reports progress on stderr. Of several processes one builds and the others wait. Returns
 * why it failed; null: the addon is at BUILT_ADDON.
 */
export function buildAddon(because: string): string | null {
  const folder = join(PACKAGE_ROOT, "build");
  try {
    mkdirSync(folder, { recursive: true });
    accessSync(folder, constants.W_OK);
  } catch {
    return `${folder} can't be written by this user`;
  }
  const lock = join(folder, "native.lock");
  if (!takeLock(lock, BUILD_MINUTES * 60_000))
    return `another process has been building it for ${BUILD_MINUTES} minutes`;
  // A folder for this process alone: one that a killed process left can't disturb it.
  const build = join(folder, `native-${process.pid}`);
  try {
    if (existsSync(BUILT_ADDON)) return null;
    process.stderr.write(`Building the native engine from source, for ${because}. This takes a few minutes.\n`);
    const script = join(PACKAGE_ROOT, "scripts", "build-native.mjs");
    const child = spawnSync(process.execPath, [script, "--addon", build], {
      encoding: "utf8",
      stdio: ["ignore", "ignore", "pipe"],
      timeout: BUILD_MINUTES * 60_000,
    });
    if (child.status === 0) {
      mkdirSync(dirname(BUILT_ADDON), { recursive: true });
      renameSync(join(build, "pipelora.node"), BUILT_ADDON);
      return null;
    }
    const last = child.stderr.trim().split("\n").slice(-20).join("\n");
    return child.error?.message ?? (last || `it ended with ${child.status ?? child.signal}`);
  } finally {
    rmSync(build, { recursive: true, force: true });
    rmSync(lock, { force: true });
  }
}

/** Waits for a lock file that holds its owner's process id. A lock of a dead process is taken over. False: the wait timed out. */
export function takeLock(path: string, waitMs: number): boolean {
  const deadline = Date.now() + waitMs;
  for (;;) {
    try {
      writeFileSync(path, String(process.pid), { flag: "wx" });
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    if (!isAlive(path)) rmSync(path, { force: true });
    else if (Date.now() > deadline) return false;
    else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, POLL_MS);
  }
}

function isAlive(lock: string): boolean {
  try {
    const holder = Number(readFileSync(lock, "utf8"));
    // Not written yet, or never.
    if (!(holder > 0)) return Date.now() - statSync(lock).mtimeMs < WRITTEN_MS;
    process.kill(holder, 0);
    return true;
  } catch (error) {
    // The process exists but belongs to another user.
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
