import { execFile } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const CACHE = new URL("../../../.cache/npm", import.meta.url).pathname;
const SECONDS = 180;

/**
 * The folder of a published package at one version ("name@1.2.3"), fetched once into .cache by npm, which checks its hash. Null
 * where no registry is reached, or with PIPELORA_OFFLINE_TESTS set: the caller skips.
 */
export async function npmPackage(spec: string): Promise<string | null> {
  const dir = join(CACHE, spec.replaceAll("/", "+"));
  if (existsSync(dir)) return dir;
  if (process.env["PIPELORA_OFFLINE_TESTS"]) return null;
  mkdirSync(CACHE, { recursive: true });
  const temporary = mkdtempSync(join(CACHE, ".part-"));
  try {
    const options = { cwd: temporary, timeout: SECONDS * 1000 };
    const { stdout } = await run("npm", ["pack", "--silent", "--fetch-retries=1", spec], options);
    await run("tar", ["xzf", stdout.trim().split("\n").at(-1)!], options);
    if (!existsSync(dir)) renameSync(join(temporary, "package"), dir);
    return dir;
  } catch {
    return null;
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}
