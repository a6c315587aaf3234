import { type Dtype, dtypeBytes, elementCount } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { shown } from "../common/shown.ts";

/** The format's own limit on the header. */
export const MAX_HEADER_BYTES = 100_000_000;

const DTYPES: Readonly<Record<string, Dtype>> = {
  F64: "float64",
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
  I64: "int64",
  I32: "int32",
  I16: "int16",
  I8: "int8",
  U8: "uint8",
  BOOL: "bool",
  F8_E4M3: "float8_e4m3fn",
};
const NAMES = Object.fromEntries(Object.entries(DTYPES).map(([name, dtype]) => [dtype, name])) as Record<Dtype, string>;

/** One tensor in a header: its bytes lie in [begin, end) after the header. */
export interface HeaderEntry {
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

export interface Header {
  readonly metadata: Readonly<Record<string, string>>;
  readonly entries: ReadonlyMap<string, HeaderEntry>;
}

function invalid(path: string, message: string): never {
  throw new PipeloraError("PL_CHECKPOINT_INVALID", `${path}: ${message}.`, {
    hint: "The file is damaged or no safetensors file: fetch or write it again.",
  });
}

/**
 * Parses and checks a header against the format's rules: every entry well formed, byte ranges that fit shape and dtype,
 * that follow each other without hole or overlap and cover all `dataBytes`, no name twice.
 */
export function parseHeader(path: string, text: string, dataBytes: number): Header {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    return invalid(path, `its header is not JSON (${(error as Error).message})`);
  }
  if (!isRecord(parsed)) return invalid(path, "its header is not a JSON object");
  const keys = topLevelKeys(text);
  if (new Set(keys).size !== keys.length) {
    return invalid(path, `its header names ${JSON.stringify(keys.find((key, i) => keys.indexOf(key) !== i))} twice`);
  }
  const entries = new Map<string, HeaderEntry>();
  for (const [name, value] of Object.entries(parsed)) {
    if (name !== "__metadata__") entries.set(name, parseEntry(path, name, value));
  }
  checkCoverage(path, entries, dataBytes);
  return { metadata: parseMetadata(path, parsed["__metadata__"]), entries };
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

function parseMetadata(path: string, value: unknown): Record<string, string> {
  if (value === undefined || value === null) return {};
  if (!isRecord(value) || Object.values(value).some((entry) => typeof entry !== "string")) {
    return invalid(path, "__metadata__ must map names to strings");
  }
  return value as Record<string, string>;
}

function parseEntry(path: string, name: string, value: unknown): HeaderEntry {
  const where = `tensor ${JSON.stringify(name)}`;
  if (!isRecord(value)) return invalid(path, `${where} has no description`);
  const { dtype: dtypeName, shape, data_offsets: offsets } = value;
  const dtype = typeof dtypeName === "string" && Object.hasOwn(DTYPES, dtypeName) ? DTYPES[dtypeName] : undefined;
  if (dtype === undefined) return invalid(path, `${where} has dtype ${shown(dtypeName)}, which is not read`);
  if (!Array.isArray(shape) || shape.length > 16 || !shape.every(isCount)) {
    return invalid(path, `${where} has no shape of whole numbers`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    return invalid(path, `${where} has no pair of data_offsets`);
  }
  const [begin, end] = offsets as [number, number];
  const bytes = elementCount(shape as number[]) * dtypeBytes(dtype);
  if (!Number.isSafeInteger(bytes) || end - begin !== bytes) {
    return invalid(
      path,
      `${where} of shape [${shape.join(", ")}] in ${dtype} needs ${bytes} bytes, has ${end - begin}`,
    );
  }
  return { dtype, shape: shape as number[], begin, end };
}

function checkCoverage(path: string, entries: ReadonlyMap<string, HeaderEntry>, dataBytes: number): void {
  let position = 0;
  const byBegin = [...entries].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  for (const [name, { begin, end }] of byBegin) {
    if (begin !== position) {
      invalid(path, `tensor ${JSON.stringify(name)} starts at byte ${begin}, expected ${position} (overlap or hole)`);
    }
    position = end;
  }
  if (position !== dataBytes) {
    invalid(
      path,
      `its tensors need ${position} bytes after the header, the file has ${dataBytes} (truncated or padded)`,
    );
  }
}

/** Keys at a JSON object's first level as written in the text, including repeats. `text` is valid JSON. */
function topLevelKeys(text: string): string[] {
  const keys: string[] = [];
  let depth = 0;
  let expectKey = false;
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '"') {
      const start = i;
      for (i += 1; text[i] !== '"'; i++) if (text[i] === "\\") i += 1;
      if (depth === 1 && expectKey) keys.push(JSON.parse(text.slice(start, i + 1)) as string);
      expectKey = false;
    } else if (character === "{" || character === "[") {
      depth += 1;
      expectKey = depth === 1;
    } else if (character === "}" || character === "]") depth -= 1;
    else if (character === "," && depth === 1) expectKey = true;
  }
  return keys;
}

export interface HeaderTensor {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
}

/** Widest first, so that every tensor is aligned; the reference implementation's order. */
const STORAGE_ORDER: readonly Dtype[] = [
  "int64",
  "float64",
  "float32",
  "int32",
  "bfloat16",
  "float16",
  "int16",
  "int8",
  "uint8",
  "bool",
];

/** Tensors in the order that the reference implementation stores them: by dtype, then by name. */
export function storageOrder<T extends HeaderTensor>(tensors: readonly T[]): T[] {
  const rank = (tensor: T) => STORAGE_ORDER.indexOf(tensor.dtype);
  return [...tensors].sort((a, b) => rank(a) - rank(b) || (a.name < b.name ? -1 : 1));
}

/** Length prefix and header of a file that holds `tensors` in the order given, padded to a multiple of 8 and to `atLeast` bytes. */
export function encodeHeader(
  tensors: readonly HeaderTensor[],
  metadata: Readonly<Record<string, string>>,
  atLeast = 0,
): Buffer {
  let position = 0;
  const fields = tensors.map(({ name, dtype, shape }) => {
    const end = position + elementCount(shape) * dtypeBytes(dtype);
    const entry = { dtype: NAMES[dtype], shape, data_offsets: [position, end] };
    position = end;
    return `${JSON.stringify(name)}:${JSON.stringify(entry)}`;
  });
  const extra = Object.keys(metadata).length === 0 ? [] : [`"__metadata__":${JSON.stringify(metadata)}`];
  const json = Buffer.from(`{${[...extra, ...fields].join(",")}}`, "utf8");
  const padded = Math.max(Math.ceil(json.length / 8) * 8, atLeast - 8);
  const header = Buffer.alloc(8 + padded, " ");
  header.writeBigUInt64LE(BigInt(padded), 0);
  json.copy(header, 8);
  return header;
}
