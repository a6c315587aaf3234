import type { WorkerConnection } from "../../rpc/worker-connection.ts";

/** Workers that were told to join again and have yet to. */
export class Returning {
  /** Process ids. */
  readonly #expected = new Map<string, number>();

  #began = 0;
  #lastMs: number | null = null;

  /** In place of those expected before. */
  expect(workers: readonly WorkerConnection[]): void {
    this.#began = performance.now();
    this.#lastMs = null;
    this.#expected.clear();
    for (const { hello } of workers) this.#expected.set(processOf(hello), hello.pid);
  }

  /** It is back, or its process ended. */
  gone(worker: WorkerProcess): void {
    if (this.#expected.delete(processOf(worker))) this.#lastMs = performance.now() - this.#began;
  }

  /** Milliseconds that the last one took that is back or gone; null: none is. */
  get lastMs(): number | null {
    return this.#lastMs;
  }

  get pids(): number[] {
    return [...this.#expected.values()];
  }

  get none(): boolean {
    return this.#expected.size === 0;
  }

  /** Nobody waits for them any more. */
  clear(): void {
    this.#expected.clear();
  }
}

type WorkerProcess = Pick<WorkerConnection["hello"], "node" | "pid">;

/** Names a worker's process. */
export function processOf({ node, pid }: WorkerProcess): string {
  return JSON.stringify([node, pid]);
}
