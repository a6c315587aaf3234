import { Readable } from "node:stream";
import { CsvError, parse as csvParser } from "csv-parse";
import { readBytes } from "./bytes.ts";
import { datasetError } from "./checks.ts";

/** Columns of tables that hold lists, written as JSON text in a CSV file. */
const LIST_COLUMNS = ["input_ids", "labels", "attention_mask", "messages"];

const MAX_LINE = 1 << 28;

/** Rows of a CSV file with a header line (RFC 4180). */
export function readCsvValues(path: string): AsyncIterable<unknown> {
  return readTable(path, ",");
}

/** The same with tabs between the fields. */
export function readTsvValues(path: string): AsyncIterable<unknown> {
  return readTable(path, "\t");
}

/** A row of plain text a line, as the datasets library reads text; empty lines are none. */
export async function* readTextLines(path: string): AsyncIterable<unknown> {
  let rest = "";
  for await (const piece of decodeUtf8(path)) {
    const lines = (rest + piece).split(/\r?\n/);
    rest = lines.pop()!;
    if (rest.length > MAX_LINE)
      throw datasetError(`${path} has a line of more than ${MAX_LINE} characters.`, "Break it.");
    for (const text of lines) if (text.trim() !== "") yield { text };
  }
  if (rest.trim() !== "") yield { text: rest };
}

async function* readTable(path: string, delimiter: string): AsyncIterable<unknown> {
  const parser = csvParser({ delimiter, columns: true, bom: true, skip_empty_lines: true, max_record_size: 1 << 28 });
  const text = Readable.from(decodeUtf8(path));
  text.on("error", (error) => parser.destroy(error));
  text.pipe(parser);
  try {
    for await (const record of parser as AsyncIterable<Record<string, string>>) yield withLists(path, record);
  } catch (error) {
    if (error instanceof CsvError) {
      throw datasetError(
        `${path} is not a ${delimiter === "," ? "CSV" : "TSV"} table: ${error.message}.`,
        "Quote fields that hold the delimiter, quotes or newlines, and double the quotes in them.",
        error,
      );
    }
    throw error;
  }
}

async function* decodeUtf8(path: string): AsyncIterable<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  try {
    for await (const chunk of readBytes(path)) yield decoder.decode(chunk, { stream: true });
    yield decoder.decode();
  } catch (error) {
    if (error instanceof TypeError) throw datasetError(`${path} is not UTF-8.`, "Convert the file to UTF-8.", error);
    throw error;
  }
}

function withLists(path: string, record: Record<string, string>): Record<string, unknown> {
  const row: Record<string, unknown> = { ...record };
  for (const column of LIST_COLUMNS) {
    const text = record[column];
    if (text === undefined || text === "") continue;
    try {
      row[column] = JSON.parse(text) as unknown;
    } catch (error) {
      throw datasetError(
        `${path}: column "${column}" must hold JSON, got ${text.slice(0, 60)}.`,
        "Write lists as [1, 2, 3].",
        error,
      );
    }
  }
  return row;
}
