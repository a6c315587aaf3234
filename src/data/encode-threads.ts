import { availableParallelism } from "node:os";
import { PipeloraError } from "../common/errors.ts";
import { type BatchAnswer, type EncodedBatch, type RowBatch, type ThreadStart, thrownThere } from "./encoded-batch.ts";
import { startThread } from "./start-thread.ts";

/** Text per thread for which it pays to load another tokenizer. */
const BYTES_A_THREAD = 16 << 20;
const MOST_THREADS = 16;
/** Batches that a thread has at a time: one in work, one waiting. */
const AT_ONCE = 2;
/** Time limit of one batch, far above what its text takes. Tokenizers and templates have limits of their own. */
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
 * How many threads encode this much text; 0: encoding it here is sooner done. One a core: the reading thread takes about 3 % of the time
 * that they take together.
 */
export function threadsFor(bytes: number): number {
  return Math.min(MOST_THREADS, availableParallelism(), Math.floor(bytes / BYTES_A_THREAD));
}

/** Threads that encode batches of rows while the file is read. The result does not depend on their number. */
export class EncodeThreads {
  readonly #threads: readonly Thread[];

  constructor(count: number, start: ThreadStart) {
    this.#threads = Array.from({ length: count }, () => this.#started(start));
  }

  /** Batches that may be given out before the first result is back. */
  get ahead(): number {
    return AT_ONCE * this.#threads.length;
  }

  /** Encoded by the thread with the fewest batches. Errors: those of encodeRow; PL_INTERNAL where a thread ends or exceeds its time. */
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
