import { stat } from "node:fs/promises";
import { extname } from "node:path";
import { datasetError } from "./checks.ts";
import { readJsonValues } from "./json-stream.ts";
import { parseRow, type Row } from "./rows.ts";

type Reader = (path: string) => AsyncIterable<unknown>;

const json = async (): Promise<Reader> => readJsonValues;

/** Loaded when chosen: the libraries for tables are large. */
const READERS: Readonly<Record<string, () => Promise<Reader>>> = {
  ".json": json,
  ".jsonl": json,
  ".ndjson": json,
  ".csv": async () => (await import("./tables.ts")).readCsvValues,
  ".parquet": async () => (await import("./tables.ts")).readParquetValues,
};

/**
 * The checked rows of a JSON, JSONL, CSV or Parquet file, streamed. Error: PL_DATASET_INVALID, with the row's number
 * (from 1) and key where one is to blame.
 */
export async function* readRows(path: string): AsyncIterable<Row> {
  const extension = extname(path).toLowerCase();
  const load = Object.hasOwn(READERS, extension) ? READERS[extension] : undefined;
  if (load === undefined) {
    throw datasetError(
      `${path}: "${extension}" is no dataset's extension.`,
      `Give a file ending in ${Object.keys(READERS).join(", ")}.`,
    );
  }
  const found = await stat(path).catch((error: Error) => {
    throw datasetError(`${path} can't be read: ${error.message}.`, "Check the path of the dataset.", error);
  });
  if (!found.isFile()) throw datasetError(`${path} is not a file.`, "Give one file of rows.");
  const reader = await load();
  let number = 0;
  for await (const value of reader(path)) yield parseRow(path, ++number, value);
  if (number === 0) throw datasetError(`${path} has no rows.`, "Give a dataset with at least one row.");
}
