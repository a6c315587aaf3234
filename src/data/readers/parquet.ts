import { stat } from "node:fs/promises";
import type { Worker } from "node:worker_threads";
import { startThread } from "../start-thread.ts";
import { datasetError } from "./checks.ts";
import type { ParquetAnswer } from "./parquet-thread.ts";

/** Time limit for one row group: far above what decoding takes; a part for the file, a part for each of its bytes. */
const GROUP_MS = 5_000;
const BYTES_A_MS = 1_000;
/** Heap of the thread: one byte of a file may stand for several rows of a dictionary. */
const HEAP_MIB = 512;
const HEAP_BYTES_A_BYTE = 64;

/**
 * Rows of a Parquet file, one row group in memory at a time. The library trusts the counts in a file, so a few hundred bytes may ask for
 * endless work or all memory. It therefore runs in a thread with limits for both.
 */
export async function* readParquetValues(path: string): AsyncIterable<unknown> {
  const { size } = await stat(path);
  const maxOldGenerationSizeMb = HEAP_MIB + Math.ceil((size * HEAP_BYTES_A_BYTE) / 2 ** 20);
  const thread = startThread("./readers/parquet-thread", {
    workerData: path,
    resourceLimits: { maxOldGenerationSizeMb },
  });
  try {
    for (;;) {
      const answer = await ask(thread, GROUP_MS + size / BYTES_A_MS);
      if (answer === "end") return;
      if ("error" in answer) throw new Error(answer.error);
      yield* answer.rows;
    }
  } catch (error) {
    throw datasetError(
      `${path} can't be read as Parquet: ${(error as Error).message.replace(/\.$/, "")}.`,
      "Write the file again.",
      error,
    );
  } finally {
    await thread.terminate();
  }
}

function ask(thread: Worker, ms: number): Promise<ParquetAnswer> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new Error(`a row group took over ${Math.round(ms / 1000)} s, far more than its size needs`)),
      ms,
    );
    const settle = (act: () => void) => () => {
      clearTimeout(timer);
      act();
    };
    thread.removeAllListeners();
    // One that comes between two questions shows as the thread's end.
    thread.on("error", () => {});
    thread.once("message", (answer: ParquetAnswer) => settle(() => resolve(answer))());
    thread.once("error", (error) => settle(() => reject(error))());
    thread.once(
      "exit",
      settle(() => reject(new Error("its reader ended"))),
    );
    thread.postMessage("next");
  });
}
