import { availableParallelism } from "node:os";
import { PipeloraError } from "../common/errors.ts";
import { type BatchAnswer, type EncodedBatch, type RowBatch, type ThreadStart, thrownThere } from "./encoded-batch.ts";
import { startThread } from "./start-thread.ts";

/** A thread holds a tokenizer of its own: so much text for each is worth one. */
const BYTES_A_THREAD = 16 << 20;
const MOST_THREADS = 16;
/** Batches that a thread is given at once: one to work on, one to go on with. */
const AT_ONCE = 2;
/** For one batch, far above what its text takes: tokenizers and templates have limits of their own. */
const BATCH_MS = 600_000;

interface Thread {
  readonly worker: ReturnType<typeof startThread>;
  /** Answers come in the order of the questions. */
  readonly waiting: {
    resolve(batch: EncodedBatch): void;
    reject(error: unknown): void;
    readonly timer: NodeJS.Timeout;
  }[];
  failed: Error | null;
}

/**
 * How many threads encode so much text; 0: it is done sooner without. One a core: the thread that reads takes three hundredths of what
 * they take together.
 */
export function threadsFor(bytes: number): number {
  return Math.min(MOST_THREADS, availableParallelism(), Math.floor(bytes / BYTES_A_THREAD));
}

/** Threads that encode batches of rows beside the reading of a file. The result does not depend on their number. */
export class EncodeThreads {
  readonly #threads: readonly Thread[];

  constructor(count: number, start: ThreadStart) {
    this.#threads = Array.from({ length: count }, () => this.#started(start));
  }

  /** Batches that are worth giving out before the first is back. */
  get ahead(): number {
    return AT_ONCE * this.#threads.length;
  }

  /** By the thread with the least to do. Errors: those of encodeRow; PL_INTERNAL where a thread ends or stands still. */
  encode(batch: RowBatch): Promise<EncodedBatch> {
    const thread = this.#threads.reduce((least, other) =>
      other.waiting.length < least.waiting.length ? other : least,
    );
    return new Promise((resolve, reject) => {
      if (thread.failed !== null) return reject(thread.failed);
      const late = () => this.#fail(thread, new Error(`gave no answer in ${BATCH_MS / 1000} s`));
      thread.waiting.push({ resolve, reject, timer: setTimeout(late, BATCH_MS) });
      thread.worker.postMessage(batch);
    });
  }

  async close(): Promise<void> {
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
    for (const { waiting } of this.#threads) for (const { timer } of waiting) clearTimeout(timer);
  }

  #started(start: ThreadStart): Thread {
    const worker = startThread("./encode-thread", { workerData: start });
    const thread: Thread = { worker, waiting: [], failed: null };
    worker.on("message", (answer: BatchAnswer) => {
      const { resolve, reject, timer } = thread.waiting.shift()!;
      clearTimeout(timer);
      if ("error" in answer) reject(thrownThere(answer.error));
      else resolve(answer);
    });
    worker.on("error", (error) => this.#fail(thread, error));
    worker.on("exit", () => this.#fail(thread, new Error("ended")));
    return thread;
  }

  #fail(thread: Thread, cause: Error): void {
    thread.failed ??= new PipeloraError("PL_INTERNAL", `a thread that encodes rows: ${cause.message}`, { cause });
    for (const { reject, timer } of thread.waiting.splice(0)) {
      clearTimeout(timer);
      reject(thread.failed);
    }
  }
}
