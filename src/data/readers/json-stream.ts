import { createReadStream } from "node:fs";
import { readBytes } from "./bytes.ts";
import { datasetError } from "./checks.ts";
import { rowsOfObject } from "./json-shapes.ts";

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const NEWLINE = 0x0a;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const COMMA = 0x2c;
const isSpace = (byte: number) => byte === 0x20 || (byte >= 0x09 && byte <= 0x0d);
const isOpen = (byte: number) => byte === 0x7b || byte === OPEN_LIST;
const isClose = (byte: number) => byte === 0x7d || byte === CLOSE_LIST;

/** A longer row means that a quote or bracket was left open. */
const MAX_ROW_BYTES = 256 * 1024 * 1024;

/**
 * The values of a JSON array, or of JSON lines, one at a time: only the current row is in memory. The first byte tells which of the two it
 * is. Error: PL_DATASET_INVALID with the row's number.
 */
export async function* readJsonValues(path: string): AsyncIterable<unknown> {
  if (path.toLowerCase().endsWith(".json")) {
    const rows = (await firstCharacter(path)) === "{" ? await rowsOfObject(path) : null;
    if (rows !== null) {
      yield* rows;
      return;
    }
  }
  let splitter: Splitter | null = null;
  let number = 0;
  for await (const chunk of readBytes(path)) {
    let rest = chunk;
    if (splitter === null) {
      const start = firstByte(rest);
      if (start === rest.length) continue;
      splitter = rest[start] === OPEN_LIST ? new ArraySplitter(path) : new LineSplitter(path);
      rest = rest.subarray(rest[start] === OPEN_LIST ? start + 1 : start);
    }
    for (const piece of splitter.push(rest)) yield parse(path, ++number, piece);
  }
  for (const piece of splitter?.end() ?? []) yield parse(path, ++number, piece);
}

async function firstCharacter(path: string): Promise<string | null> {
  for await (const chunk of createReadStream(path, { end: 65535 }) as AsyncIterable<Buffer>) {
    const start = firstByte(chunk);
    if (start < chunk.length) return String.fromCharCode(chunk[start]!);
  }
  return null;
}

/** Skips white space and a byte order mark. */
function firstByte(bytes: Uint8Array): number {
  let at = bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf ? 3 : 0;
  while (at < bytes.length && isSpace(bytes[at]!)) at += 1;
  return at;
}

function parse(path: string, number: number, bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    throw datasetError(`${path}: row ${number} is not UTF-8.`, "Convert the file to UTF-8.", error);
  }
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw datasetError(
      `${path}: row ${number} is not JSON: ${(error as Error).message}.`,
      "Write one JSON list of rows, or one row a line.",
      error,
    );
  }
}

/** Splits a stream of bytes into the texts of values. */
abstract class Splitter {
  protected readonly path: string;
  #kept: Uint8Array[] = [];
  #keptBytes = 0;

  constructor(path: string) {
    this.path = path;
  }

  abstract push(chunk: Uint8Array): Iterable<Uint8Array>;
  abstract end(): Iterable<Uint8Array>;

  protected keep(bytes: Uint8Array): void {
    this.#kept.push(bytes);
    this.#keptBytes += bytes.length;
    if (this.#keptBytes > MAX_ROW_BYTES) {
      throw datasetError(
        `${this.path} has a row of over ${MAX_ROW_BYTES} bytes.`,
        "Look for a quote or bracket left open.",
      );
    }
  }

  /** What was kept, with `last` behind it. */
  protected take(last: Uint8Array): Uint8Array {
    const whole = this.#kept.length === 0 ? last : Buffer.concat([...this.#kept, last]);
    this.#kept = [];
    this.#keptBytes = 0;
    return whole;
  }
}

const isBlank = (bytes: Uint8Array) => bytes.every(isSpace);

class LineSplitter extends Splitter {
  *push(chunk: Uint8Array): Iterable<Uint8Array> {
    let begin = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, begin)) {
      const line = this.take(chunk.subarray(begin, end));
      begin = end + 1;
      if (!isBlank(line)) yield line;
    }
    if (begin < chunk.length) this.keep(chunk.slice(begin));
  }

  *end(): Iterable<Uint8Array> {
    const line = this.take(new Uint8Array(0));
    if (!isBlank(line)) yield line;
  }
}

/** Splits at the commas between the array's own elements; JSON.parse judges each element. */
class ArraySplitter extends Splitter {
  #depth = 0;
  #inString = false;
  #escaped = false;
  #closed = false;
  #elements = 0;

  *push(chunk: Uint8Array): Iterable<Uint8Array> {
    let begin = 0;
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at]!;
      if (this.#inString) {
        if (this.#escaped) this.#escaped = false;
        else if (byte === BACKSLASH) this.#escaped = true;
        else if (byte === QUOTE) this.#inString = false;
        continue;
      }
      if (this.#closed) {
        if (isSpace(byte)) continue;
        throw datasetError(
          `${this.path} goes on after its list of rows.`,
          "Keep one JSON list in the file, or one row a line.",
        );
      }
      if (byte === QUOTE) this.#inString = true;
      else if (isOpen(byte)) this.#depth += 1;
      else if (this.#depth > 0 && isClose(byte)) this.#depth -= 1;
      else if (this.#depth === 0 && (byte === COMMA || byte === CLOSE_LIST)) {
        const element = this.take(chunk.subarray(begin, at));
        begin = at + 1;
        this.#closed = byte === CLOSE_LIST;
        if (this.#closed && this.#elements > 0 && isBlank(element)) {
          throw datasetError(`${this.path}: a comma stands before the closing bracket.`, "Take the last comma out.");
        }
        if (!(this.#closed && this.#elements === 0 && isBlank(element))) yield element;
        this.#elements += 1;
      }
    }
    if (!this.#closed && begin < chunk.length) this.keep(chunk.slice(begin));
  }

  end(): Iterable<Uint8Array> {
    if (!this.#closed) {
      throw datasetError(
        `${this.path} ends inside its list of rows.`,
        "The file is cut off, or a quote or bracket is left open.",
      );
    }
    return [];
  }
}
