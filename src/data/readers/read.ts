import { open, stat } from "node:fs/promises";
import { lfsPointer } from "../../common/lfs.ts";
import type { Columns } from "../../config/column-keys.ts";
import { datasetError } from "./checks.ts";
import { withColumns } from "./columns.ts";
import { readJsonValues } from "./json-stream.ts";
import { parseRow, type Row } from "./rows.ts";

type Reader = (path: string) => AsyncIterable<unknown>;

const json = async (): Promise<Reader> => readJsonValues;

/** Each reader is loaded when it is needed: the libraries for tables are large. All but the last may be compressed. */
const READERS: Readonly<Record<string, () => Promise<Reader>>> = {
  ".json": json,
  ".jsonl": json,
  ".ndjson": json,
  ".txt": async () => (await import("./tables.ts")).readTextLines,
  ".csv": async () => (await import("./tables.ts")).readCsvValues,
  ".tsv": async () => (await import("./tables.ts")).readTsvValues,
  ".parquet": async () => (await import("./parquet.ts")).readParquetValues,
};
const EXTENSION = /(\.[^./\\]*?)(\.gz|\.zst)?$/;

function readerOf(path: string): (() => Promise<Reader>) | undefined {
  const [, extension = "", packed] = EXTENSION.exec(path.toLowerCase()) ?? [];
  if (!Object.hasOwn(READERS, extension) || (extension === ".parquet" && packed !== undefined)) return undefined;
  return READERS[extension];
}

/** Whether rows can be read from a file of this name. */
export function holdsRows(path: string): boolean {
  return readerOf(path) !== undefined;
}

/**
 * The checked rows of a JSON, JSONL, CSV, TSV or Parquet file, streamed, with columns renamed to our keys. Error: PL_DATASET_INVALID, with
 * the row's number (from 1) and the key.
 */
export async function* readRows(path: string, columns: Columns = {}): AsyncIterable<Row> {
  const load = readerOf(path);
  if (load === undefined) {
    throw datasetError(
      `${path}: "${EXTENSION.exec(path.toLowerCase())?.[0] ?? ""}" is no dataset's extension.`,
      `Give a file ending in ${Object.keys(READERS).join(", ")}; all but the last also packed as .gz or .zst.`,
    );
  }
  const found = await stat(path).catch((error: Error) => {
    throw datasetError(`${path} can't be read: ${error.message}.`, "Check the path of the dataset.", error);
  });
  if (!found.isFile()) throw datasetError(`${path} is not a file.`, "Give one file of rows.");
  await refusePointer(path);
  const reader = await load();
  let number = 0;
  for await (const value of reader(path)) {
    number += 1;
    yield parseRow(path, number, withColumns(`${path}: row ${number}`, value, columns));
  }
  if (number === 0) throw datasetError(`${path} has no rows.`, "Give a dataset with at least one row.");
}

async function refusePointer(path: string): Promise<void> {
  const file = await open(path);
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(64), 0, 64, 0);
    const pointer = lfsPointer(buffer.subarray(0, bytesRead));
    if (pointer !== null) throw datasetError(`${path}: ${pointer}.`, "Fetch the rows themselves.");
  } finally {
    await file.close();
  }
}
