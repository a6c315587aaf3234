import { readFile, stat } from "node:fs/promises";
import { datasetError, isRecord } from "./checks.ts";

/** A file that is one object is read whole, up to this size: far above wrapped sets, far below the memory of a machine. */
const MAX_WHOLE_BYTES = 512 * 1024 * 1024;
/** Keys under which exports keep their list of rows. */
const WRAPPERS = ["data", "rows", "train", "examples", "conversations_list"];

/**
 * The rows of a .json file that begins with an object: {"data": [rows]}, or one row, over any number of lines. null where the file is not a
 * single value: it then has a row a line. Error: PL_DATASET_INVALID.
 */
export async function rowsOfObject(path: string): Promise<readonly unknown[] | null> {
  const { size } = await stat(path);
  if (size > MAX_WHOLE_BYTES) return null;
  let value: unknown;
  try {
    value = JSON.parse((await readFile(path, "utf8")).replace(/^\ufeff/, ""));
  } catch {
    return null;
  }
  if (!isRecord(value)) return null;
  const keys = Object.keys(value);
  const wrapper = WRAPPERS.find((key) => Array.isArray(value[key]));
  if (wrapper !== undefined) return value[wrapper] as unknown[];
  const lists = keys.filter((key) => Array.isArray(value[key]));
  if (keys.length === 1 && lists.length === 1 && !["messages", "conversations", "conversation"].includes(keys[0]!)) {
    throw datasetError(
      `${path} is one object with the key "${keys[0]}": expected a list of rows.`,
      `Keep the list alone in the file, or name it "data".`,
    );
  }
  return [value];
}
