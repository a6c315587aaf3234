import type { FileHandle } from "node:fs/promises";
import { elementCount } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import { writeAtomically } from "../atomic-file.ts";
import { code, count, encodeMetadata, encodeText, type Metadata } from "./metadata.ts";
import { GGUF_TYPES, type GgufType, typeBytes } from "./tensor-types.ts";

const VERSION = 3;
/** Tensors are aligned to this (general.alignment unless a key says otherwise). */
const ALIGNMENT = 32;
/** ggml's GGML_MAX_NAME, with the end mark. */
const MAX_NAME_BYTES = 63;

/** A tensor to write. `data` is called when it is written, so that one tensor at a time is in memory. */
export interface GgufTensor {
  readonly name: string;
  /** Outermost dimension first, as in torch; the file stores the reverse. */
  readonly shape: readonly number[];
  readonly type: GgufType;
  readonly data: () => AsyncIterable<Uint8Array>;
}

/**
 * Writes a GGUF file (version 3, little-endian), complete or not at all, tensor by tensor. Errors: PL_OUTPUT_UNWRITABLE, PL_INTERNAL where
 * a tensor's data does not have its shape's size.
 */
export async function writeGguf(path: string, metadata: Metadata, tensors: readonly GgufTensor[]): Promise<void> {
  const seen = new Set<string>();
  for (const { name } of tensors) {
    if (seen.has(name) || Buffer.byteLength(name) > MAX_NAME_BYTES) {
      throw new PipeloraError(
        "PL_INTERNAL",
        `tensor name ${name} stands twice or is longer than ${MAX_NAME_BYTES} bytes.`,
      );
    }
    seen.add(name);
  }
  let end = 0;
  const entries = tensors.map(({ name, shape, type }) => {
    const offset = end;
    end = aligned(offset + typeBytes(type, elementCount(shape)));
    return Buffer.concat([
      encodeText(name),
      code(shape.length),
      ...[...shape].reverse().map(count),
      code(GGUF_TYPES[type].code),
      count(offset),
    ]);
  });
  const head = Buffer.concat([
    Buffer.from("GGUF", "latin1"),
    code(VERSION),
    count(tensors.length),
    count(metadata.size),
    encodeMetadata(metadata),
    ...entries,
  ]);
  await writeAtomically(path, async (file) => {
    await writeAll(file, head);
    await pad(file, head.length);
    for (const tensor of tensors) {
      const bytes = typeBytes(tensor.type, elementCount(tensor.shape));
      let written = 0;
      for await (const chunk of tensor.data()) {
        await writeAll(file, chunk);
        written += chunk.byteLength;
      }
      if (written !== bytes) {
        throw new PipeloraError("PL_INTERNAL", `${tensor.name}: ${written} bytes given for a shape of ${bytes}.`);
      }
      await pad(file, bytes);
    }
  });
}

const aligned = (bytes: number) => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

async function pad(file: FileHandle, bytes: number): Promise<void> {
  const missing = aligned(bytes) - bytes;
  if (missing > 0) await writeAll(file, new Uint8Array(missing));
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let start = 0; start < bytes.byteLength; ) {
    start += (await file.write(bytes, start, Math.min(1 << 30, bytes.byteLength - start), null)).bytesWritten;
  }
}
