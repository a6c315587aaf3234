import { open } from "node:fs/promises";
import { parentPort, workerData } from "node:worker_threads";
import { type AsyncBuffer, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";

/** This thread's answer: the rows of the next row group, or that there are no more. */
export type ParquetAnswer = { readonly rows: readonly Record<string, unknown>[] } | { readonly error: string } | "end";

const port = parentPort!;
const path = workerData as string;

/** An error of a read that nobody awaits any more does not end the thread. */
async function bufferOf(file: string): Promise<AsyncBuffer> {
  const handle = await open(file);
  const { size } = await handle.stat();
  return {
    byteLength: size,
    slice: (from, to = size) => {
      const [begin, end] = [from < 0 ? size + from : from, Math.min(to, size)];
      const read = async () => {
        if (!(begin >= 0 && begin <= end))
          throw new Error(`bytes ${begin} to ${to} of a file of ${size} were asked for`);
        const bytes = new Uint8Array(end - begin);
        const { bytesRead } = await handle.read(bytes, 0, bytes.length, begin);
        if (bytesRead !== bytes.length) throw new Error("the file was cut while it was read");
        return bytes.buffer;
      };
      const reading = read();
      reading.catch(() => {});
      return reading;
    },
  };
}

async function* groups(): AsyncIterable<Record<string, unknown>[]> {
  const file = await bufferOf(path);
  const metadata = await parquetMetadataAsync(file);
  let rowStart = 0;
  for (const group of metadata.row_groups) {
    const rowEnd = rowStart + Number(group.num_rows);
    yield await parquetReadObjects({ file, metadata, compressors, rowStart, rowEnd });
    rowStart = rowEnd;
  }
}

const reading = groups()[Symbol.asyncIterator]();
port.on("message", async () => {
  let answer: ParquetAnswer;
  try {
    const next = await reading.next();
    answer = next.done ? "end" : { rows: next.value };
  } catch (error) {
    answer = { error: (error as Error).message };
  }
  port.postMessage(answer);
});
