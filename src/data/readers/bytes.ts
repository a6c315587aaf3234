import { createReadStream } from "node:fs";
import { pipeline } from "node:stream";
import { createGunzip } from "node:zlib";
import { Decompress } from "fzstd";
import { datasetError } from "./checks.ts";
import { ZstdFrames } from "./zstd-frames.ts";

const PIECE = 1 << 20;
/** Compressed bytes unpacked at a time. Four of them may unpack to 128 KiB, so a larger piece could fill the memory. */
const ZSTD_PIECE = 1024;

/** A file's bytes as they come; those of a .gz or .zst file unpacked. Error: PL_DATASET_INVALID where that fails. */
export async function* readBytes(path: string): AsyncIterable<Buffer> {
  const kind = /\.(gz|zst)$/i.exec(path)?.[1]?.toLowerCase();
  const file = createReadStream(path, { highWaterMark: PIECE });
  if (kind === undefined) {
    yield* file as AsyncIterable<Buffer>;
    return;
  }
  try {
    yield* kind === "gz" ? gunzipped(file) : unzstd(file);
  } catch (error) {
    throw datasetError(
      `${path} can't be unpacked: ${(error as Error).message}.`,
      kind === "gz"
        ? "The file is cut off or no gzip file."
        : "The file is cut off, no Zstandard file, or packed with --long: pack it without.",
      error,
    );
  }
}

function gunzipped(file: NodeJS.ReadableStream): AsyncIterable<Buffer> {
  const unpacked = createGunzip({ chunkSize: PIECE });
  // Errors of the source are thrown by the reading end.
  pipeline(file, unpacked, () => {});
  return unpacked;
}

/** Node 20 has no Zstandard of its own. Checksums are not verified. */
async function* unzstd(file: AsyncIterable<unknown>): AsyncIterable<Buffer> {
  let pieces: Buffer[] = [];
  const unpacker = new Decompress((piece) => {
    // Copied: the library reuses its buffer.
    if (piece.length > 0) pieces.push(Buffer.from(piece));
  });
  const frames = new ZstdFrames();
  const taken = () => {
    const all = pieces;
    pieces = [];
    return all;
  };
  for await (const chunk of file as AsyncIterable<Buffer>) {
    for (let at = 0; at < chunk.length; at += ZSTD_PIECE) {
      const piece = chunk.subarray(at, at + ZSTD_PIECE);
      frames.push(piece);
      unpacker.push(piece);
      yield* taken();
    }
  }
  unpacker.push(new Uint8Array(0), true);
  yield* taken();
}
