import { existsSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..", "..");
const sharedRoot = process.env["PIPELORA_SHARED"] ?? join(root, "..", "shared");

/** A file of tests/fixtures. */
export function fixture(path: string): string {
  return join(root, "tests", "fixtures", path);
}

/** A file of the shared data and golden vectors, which a checkout may lack: null then. */
export function shared(path: string): string | null {
  const full = join(sharedRoot, path);
  return existsSync(full) ? full : null;
}
