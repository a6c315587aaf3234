import { type FileHandle, open, stat } from "node:fs/promises";
import { type Dtype, dtypeBytes, elementCount, type FloatDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { lfsPointer } from "../common/lfs.ts";
import { writeAtomically } from "./atomic-file.ts";
import { fromFloat32, toFloat32 } from "./half.ts";
import { encodeHeader, type HeaderTensor, MAX_HEADER_BYTES, parseHeader, storageOrder } from "./safetensors-header.ts";
import { expandCodes, type Scales } from "./scaled-weights.ts";

/** Where a tensor's bytes lie: a checked range of a file. */
export interface TensorLocation {
  readonly path: string;
  /** From the start of the file. */
  readonly offset: number;
  readonly bytes: number;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** The bytes are codes in e4m3, which these scales turn into bfloat16. `dtype` and `bytes` are those of the result. */
  readonly scales?: Scales;
}

export interface SafetensorsFile {
  readonly path: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, TensorLocation>;
}

/** One read or write system call moves less than 2 GiB. */
const CHUNK_BYTES = 1 << 30;
/** Elements that are converted at a time. */
const PIECE_ELEMENTS = 1 << 22;

/** Reads and checks a file's header; no tensor is read. Errors: PL_MODEL_NOT_FOUND, PL_CHECKPOINT_INVALID. */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  return withFile(path, async (file) => {
    const { size } = await file.stat();
    if (size < 8) throw truncated(path, `${size} bytes`);
    const prefix = await readRange(file, path, 0, 8);
    const headerBytes = Buffer.from(prefix.buffer).readBigUInt64LE(0);
    const pointer = lfsPointer(await readRange(file, path, 0, Math.min(size, 64)));
    if (pointer !== null) throw new PipeloraError("PL_CHECKPOINT_INVALID", `${path}: ${pointer}.`);
    if (headerBytes > BigInt(MAX_HEADER_BYTES)) {
      throw new PipeloraError(
        "PL_CHECKPOINT_INVALID",
        `${path}: expected a header of at most ${MAX_HEADER_BYTES} bytes, its first 8 bytes say ${headerBytes}.`,
        {
          hint: "The file is damaged or no safetensors file: fetch or write it again.",
        },
      );
    }
    const dataStart = 8 + Number(headerBytes);
    if (size < dataStart) throw truncated(path, `${size} bytes, its header alone needs ${dataStart}`);
    const header = await readRange(file, path, 8, Number(headerBytes));
    let text: string;
    try {
      text = new TextDecoder("utf-8", { fatal: true }).decode(header);
    } catch (error) {
      throw new PipeloraError("PL_CHECKPOINT_INVALID", `${path}: its header is not UTF-8.`, { cause: error });
    }
    const { metadata, entries } = parseHeader(path, text, size - dataStart);
    const tensors = new Map<string, TensorLocation>();
    for (const [name, { dtype, shape, begin, end }] of entries) {
      tensors.set(name, { path, offset: dataStart + begin, bytes: end - begin, dtype, shape });
    }
    return { path, metadata, tensors };
  });
}

/** The little-endian bytes of a tensor. */
export async function readTensor(location: TensorLocation): Promise<Uint8Array> {
  const { scales } = location;
  if (scales === undefined) return readBytes(location);
  return (await scaledRows(location, scales))(0, location.shape[0]!);
}

/** Reads rows of a tensor that is stored in e4m3; its scales are read once for all rows. */
async function scaledRows(location: TensorLocation, { location: place, block }: Scales) {
  const columns = location.shape[1]!;
  const scales = await readFloat32(place);
  return async (first: number, rows: number): Promise<Uint8Array> => {
    const codes = await readBytes({ ...location, offset: location.offset + first * columns, bytes: rows * columns });
    return expandCodes(codes, columns, first, scales, block);
  };
}

async function readBytes(location: TensorLocation): Promise<Uint8Array> {
  return withFile(location.path, (file) => readRange(file, location.path, location.offset, location.bytes));
}

/** A floating tensor as float32, row-major. */
export async function readFloat32(location: TensorLocation): Promise<Float32Array> {
  const values = toFloat32(await readTensor(location), location.dtype);
  if (values === null) {
    throw new PipeloraError(
      "PL_TENSOR_MISMATCH",
      `${location.path}: expected a floating tensor, found ${location.dtype}.`,
    );
  }
  return values;
}

/** Its bytes in another floating dtype, each element rounded once; a piece at a time. */
export async function* convertedTensor(location: TensorLocation, dtype: FloatDtype): AsyncGenerator<Uint8Array> {
  if (location.scales !== undefined) {
    const [out, input] = location.shape as [number, number];
    const rows = Math.max(1, Math.floor(PIECE_ELEMENTS / input));
    const read = await scaledRows(location, location.scales);
    for (let first = 0; first < out; first += rows) {
      const bytes = await read(first, Math.min(rows, out - first));
      yield dtype === "bfloat16" ? bytes : fromFloat32(toFloat32(bytes, "bfloat16")!, dtype);
    }
    return;
  }
  const width = dtypeBytes(location.dtype);
  for (let start = 0; start < location.bytes; start += PIECE_ELEMENTS * width) {
    const bytes = Math.min(PIECE_ELEMENTS * width, location.bytes - start);
    const piece = { ...location, offset: location.offset + start, bytes, shape: [bytes / width] };
    yield location.dtype === dtype ? await readTensor(piece) : fromFloat32(await readFloat32(piece), dtype);
  }
}

/** A tensor to write. `data` is called when its turn comes, so that only one need be in memory. */
export interface TensorToWrite extends HeaderTensor {
  readonly data: () => Uint8Array | Promise<Uint8Array> | AsyncIterable<Uint8Array>;
}

/** Tensors that are computed together, wherever in the file they lie. */
export interface TensorGroup {
  readonly tensors: readonly (HeaderTensor | TensorOfUnknownSize)[];
  /** Bytes by tensor name. */
  readonly data: () => Promise<ReadonlyMap<string, Uint8Array>>;
}

/** uint8 [n]; n is seen when its group is made. */
export interface TensorOfUnknownSize {
  readonly name: string;
  readonly mostBytes: number;
}

/**
 * Writes a safetensors file whole or not at all, tensors and groups streamed one after the other; returns the bytes of all tensors.
 * Errors: PL_OUTPUT_UNWRITABLE, PL_INTERNAL where a tensor's data has another size than its shape says.
 */
export async function writeSafetensors(
  path: string,
  items: readonly (TensorToWrite | TensorGroup)[],
  metadata: Readonly<Record<string, string>> = { format: "pt" },
): Promise<number> {
  const all = items.flatMap((item) => ("tensors" in item ? item.tensors : [item]));
  const fixed = storageOrder(all.filter((tensor) => "shape" in tensor));
  const open = all.filter((tensor) => "mostBytes" in tensor);
  const room = encodeHeader([...fixed, ...open.map((tensor) => bytesTensor(tensor.name, tensor.mostBytes))], metadata);
  const offsets = new Map<string, number>();
  let end = room.length;
  for (const tensor of fixed) {
    offsets.set(tensor.name, end);
    end += tensorBytes(tensor);
  }
  const dataStart = room.length;
  await writeAtomically(path, async (file) => {
    // Tensors whose size is not known in advance come last, in the order in which they are made.
    const last: HeaderTensor[] = [];
    for (const item of items) {
      if (!("tensors" in item)) {
        await writeChunks(file, item, chunksOf(await item.data()), offsets.get(item.name)!);
        continue;
      }
      const data = await item.data();
      for (const tensor of item.tensors) {
        const bytes = data.get(tensor.name);
        if (bytes === undefined) throw new PipeloraError("PL_INTERNAL", `${tensor.name} was not made.`);
        if ("shape" in tensor) await writeChunks(file, tensor, chunksOf(bytes), offsets.get(tensor.name)!);
        else {
          if (bytes.length > tensor.mostBytes) throw wrongSize(tensor.name, bytes.length, tensor.mostBytes);
          await writeAll(file, bytes, end);
          end += bytes.length;
          last.push(bytesTensor(tensor.name, bytes.length));
        }
      }
    }
    await writeAll(file, encodeHeader([...fixed, ...last], metadata, room.length), 0);
  });
  return end - dataStart;
}

/** The bytes of float32 values as a file holds them. */
export function float32Bytes(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

function bytesTensor(name: string, bytes: number): HeaderTensor {
  return { name, dtype: "uint8", shape: [bytes] };
}

function tensorBytes({ shape, dtype }: HeaderTensor): number {
  return elementCount(shape) * dtypeBytes(dtype);
}

async function* chunksOf(data: Uint8Array | AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
  if (data instanceof Uint8Array) yield data;
  else yield* data;
}

async function writeChunks(
  file: FileHandle,
  tensor: HeaderTensor,
  chunks: AsyncIterable<Uint8Array>,
  offset: number,
): Promise<void> {
  const expected = tensorBytes(tensor);
  let written = 0;
  for await (const chunk of chunks) {
    if (written + chunk.byteLength > expected) throw wrongSize(tensor.name, written + chunk.byteLength, expected);
    await writeAll(file, chunk, offset + written);
    written += chunk.byteLength;
  }
  if (written !== expected) throw wrongSize(tensor.name, written, expected);
}

function wrongSize(name: string, given: number, expected: number): PipeloraError {
  return new PipeloraError("PL_INTERNAL", `${name}: ${given} bytes given for a shape of ${expected}.`);
}

async function writeAll(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let start = 0; start < bytes.byteLength; ) {
    const size = Math.min(CHUNK_BYTES, bytes.byteLength - start);
    const { bytesWritten } = await file.write(bytes, start, size, position + start);
    start += bytesWritten;
  }
}

async function withFile<T>(path: string, use: (file: FileHandle) => Promise<T>): Promise<T> {
  let file: FileHandle;
  try {
    // Opening a pipe would wait, and a folder can be opened but not read: both are refused first.
    if (!(await stat(path)).isFile()) throw new Error("it is no file");
    file = await open(path, "r");
  } catch (error) {
    throw new PipeloraError("PL_MODEL_NOT_FOUND", `${path} can't be opened: ${(error as Error).message}`, {
      hint: "Check the path, and that every shard of the checkpoint is there.",
      cause: error,
    });
  }
  try {
    return await use(file);
  } finally {
    await file.close();
  }
}

async function readRange(
  file: FileHandle,
  path: string,
  offset: number,
  bytes: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const target = new Uint8Array(bytes);
  for (let done = 0; done < bytes; ) {
    const { bytesRead } = await file.read(target, done, Math.min(CHUNK_BYTES, bytes - done), offset + done);
    if (bytesRead === 0) throw truncated(path, `${offset + done} bytes, ${offset + bytes} are needed`);
    done += bytesRead;
  }
  return target;
}

function truncated(path: string, detail: string): PipeloraError {
  return new PipeloraError("PL_CHECKPOINT_INVALID", `${path} is truncated: it has ${detail}.`, {
    hint: "Fetch or write the file again.",
  });
}
