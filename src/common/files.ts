import { mkdir, readFile, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { lfsPointer } from "./lfs.ts";

export async function isFile(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isFile(),
    () => false,
  );
}

async function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}

/**
 * Makes a folder and those above it that are missing; a folder that is there is fine. Errors are the file system's. (Node's own
 * recursive mkdir, as of version 20, never ends where a folder that exists takes none: under /proc.)
 */
export async function makeFolder(path: string): Promise<void> {
  const makeLast = () =>
    mkdir(path).catch(async (error) => {
      if (!(await isFolder(path))) throw error;
    });
  try {
    await makeLast();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT" || dirname(path) === path) throw error;
    await makeFolder(dirname(path));
    await makeLast();
  }
}

/**
 * Parses a JSON file from outside: at most `maxBytes`, UTF-8 without faults. Throws a plain Error (or the file system's)
 * whose message says what is wrong: the caller knows which error of the catalogue it is.
 */
export async function readJsonFile(path: string, maxBytes: number): Promise<unknown> {
  const { size } = await stat(path);
  if (size > maxBytes) throw new Error(`it has ${size} bytes, more than the ${maxBytes} that such a file may have`);
  const bytes = await readFile(path);
  const pointer = lfsPointer(bytes);
  if (pointer !== null) throw new Error(pointer);
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as unknown;
}
