import { readFile, stat } from "node:fs/promises";

export async function isFile(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isFile(),
    () => false,
  );
}

/**
 * Parses a JSON file from outside: at most `maxBytes`, UTF-8 without faults. Throws a plain Error (or the file system's)
 * whose message says what is wrong: the caller knows which error of the catalogue it is.
 */
export async function readJsonFile(path: string, maxBytes: number): Promise<unknown> {
  const { size } = await stat(path);
  if (size > maxBytes) throw new Error(`it has ${size} bytes, more than the ${maxBytes} that such a file may have`);
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(await readFile(path))) as unknown;
}
