/**
 * Values of a GGUF file's metadata (ggml's docs/gguf.md, version 3): a type's number and its little-endian bytes. Counts are 64 bits wide,
 * text is UTF-8 without an end mark.
 */
const SCALARS = {
  uint32: { code: 4, bytes: 4, write: (view: DataView, at: number, value: number) => view.setUint32(at, value, true) },
  int32: { code: 5, bytes: 4, write: (view: DataView, at: number, value: number) => view.setInt32(at, value, true) },
  float32: {
    code: 6,
    bytes: 4,
    write: (view: DataView, at: number, value: number) => view.setFloat32(at, value, true),
  },
  bool: { code: 7, bytes: 1, write: (view: DataView, at: number, value: number) => view.setUint8(at, value) },
} as const;
const STRING = 8;
const ARRAY = 9;

type Scalar = keyof typeof SCALARS;

export type MetadataValue =
  | { readonly type: Scalar; readonly value: number }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "list"; readonly of: Scalar; readonly values: readonly number[] }
  | { readonly type: "texts"; readonly values: readonly string[] };

/** By key, in the order in which they are written. */
export type Metadata = ReadonlyMap<string, MetadataValue>;

export const uint32 = (value: number): MetadataValue => ({ type: "uint32", value });
export const float32 = (value: number): MetadataValue => ({ type: "float32", value });
export const bool = (value: boolean): MetadataValue => ({ type: "bool", value: value ? 1 : 0 });
export const string = (value: string): MetadataValue => ({ type: "string", value });
export const texts = (values: readonly string[]): MetadataValue => ({ type: "texts", values });
export const list = (of: Scalar, values: readonly number[]): MetadataValue => ({ type: "list", of, values });

export function encodeText(text: string): Buffer {
  const bytes = Buffer.from(text, "utf8");
  return Buffer.concat([count(bytes.length), bytes]);
}

/** A 64-bit count. */
export function count(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

export function code(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

/** Key, type and value of every entry. */
export function encodeMetadata(metadata: Metadata): Buffer {
  return Buffer.concat([...metadata].flatMap(([key, value]) => [encodeText(key), encodeValue(value)]));
}

function encodeValue(entry: MetadataValue): Buffer {
  switch (entry.type) {
    case "string":
      return Buffer.concat([code(STRING), encodeText(entry.value)]);
    case "texts":
      return Buffer.concat([code(ARRAY), code(STRING), count(entry.values.length), ...entry.values.map(encodeText)]);
    case "list":
      return Buffer.concat([
        code(ARRAY),
        code(SCALARS[entry.of].code),
        count(entry.values.length),
        scalars(entry.of, entry.values),
      ]);
    default:
      return Buffer.concat([code(SCALARS[entry.type].code), scalars(entry.type, [entry.value])]);
  }
}

function scalars(type: Scalar, values: readonly number[]): Buffer {
  const { bytes, write } = SCALARS[type];
  const buffer = Buffer.alloc(values.length * bytes);
  const view = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength);
  for (const [i, value] of values.entries()) write(view, i * bytes, value);
  return buffer;
}
