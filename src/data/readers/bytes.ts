import { createReadStream } from "node:fs";
import { pipeline } from "node:stream";
import { createGunzip } from "node:zlib";
import { datasetError } from "./checks.ts";

/** A file's bytes as they come; those of a .gz file unpacked. Error: PL_DATASET_INVALID where that fails. */
export async function* readBytes(path: string): AsyncIterable<Buffer> {
  const file = createReadStream(path, { highWaterMark: 1 << 20 });
  if (!path.toLowerCase().endsWith(".gz")) {
    yield* file as AsyncIterable<Buffer>;
    return;
  }
  const unpacked = createGunzip({ chunkSize: 1 << 20 });
  // What goes wrong comes out of the reading end.
  pipeline(file, unpacked, () => {});
  try {
    yield* unpacked as AsyncIterable<Buffer>;
  } catch (error) {
    throw datasetError(
      `${path} can't be unpacked: ${(error as Error).message}.`,
      "The file is cut off or no gzip file.",
      error,
    );
  }
}
