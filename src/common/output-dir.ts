import { constants } from "node:fs";
import { access, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { PipeloraError } from "./errors.ts";
import { makeFolder } from "./files.ts";

/**
 * Makes the folder and tries to write in it, before any work is done.
 * Error: PL_OUTPUT_UNWRITABLE.
 */
export async function ensureWritable(dir: string): Promise<string> {
  const path = resolve(dir);
  const probe = join(path, `.pipelora-${process.pid}`);
  try {
    await makeFolder(path);
    await access(path, constants.W_OK);
    await writeFile(probe, "");
    await rm(probe);
  } catch (cause) {
    throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `can't write to ${path}: ${(cause as Error).message}`, {
      cause,
      hint: "Choose another --output-dir or make this one writable.",
    });
  }
  return path;
}
