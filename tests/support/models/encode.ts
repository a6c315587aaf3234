import type { Dataset } from "../../../src/data/dataset.ts";
import { encodeSets, type RowSet } from "../../../src/data/encode.ts";
import type { EncodeOptions } from "../../../src/data/encode-row.ts";

/** One file's rows, without threads. */
export async function encodeDataset(
  path: string,
  template: RowSet["template"],
  options: EncodeOptions,
): Promise<Dataset> {
  const set = { label: path, files: [path], weight: null, limit: null, columns: {}, template, recipe: null };
  return (await encodeSets([{ ...set, say: () => {} }], options)).rows;
}
