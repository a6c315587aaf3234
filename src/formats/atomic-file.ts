import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { PipeloraError } from "../common/errors.ts";
import { makeFolder } from "../common/files.ts";

let sequence = 0;

/**
 * Writes a file so that a reader sees the old file, the complete new one, or none: written under a temporary name in the same folder,
 * synced, renamed, and the folder synced. If `write` fails, the temporary file is removed. Error: PL_OUTPUT_UNWRITABLE.
 */
export async function writeAtomically(
  path: string,
  write: (file: FileHandle) => Promise<void>,
  mode = 0o666,
): Promise<void> {
  const temporary = `${path}.${process.pid}.${sequence++}.tmp`;
  let file: FileHandle | undefined;
  try {
    await makeFolder(dirname(path));
    file = await open(temporary, "wx", mode);
    await write(file);
    await file.sync();
    await file.close();
    file = undefined;
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await file?.close().catch(() => undefined);
    await rm(temporary, { force: true }).catch(() => undefined);
    if (error instanceof PipeloraError) throw error;
    throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `${path} can't be written: ${(error as Error).message}`, {
      hint: "Check that the folder exists, may be written and has space left.",
      cause: error,
    });
  }
}

export async function writeTextAtomically(path: string, text: string, mode?: number): Promise<void> {
  await writeAtomically(path, (file) => file.writeFile(text, "utf8"), mode);
}

/** Makes new names in the folder durable, where the file system can sync a folder. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "EINVAL" && code !== "EPERM" && code !== "EISDIR") throw error;
  } finally {
    await handle.close();
  }
}
