import type { PipeloraError } from "../common/errors.ts";

/** Senders that wait for room. When room may have been given back, all of them check again; when the link fails, all of them fail. */
export class Waiters {
  #waiting: { resolve: () => void; reject: (error: PipeloraError) => void }[] = [];

  get some(): boolean {
    return this.#waiting.length > 0;
  }

  wait(): Promise<void> {
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  wake(failure: PipeloraError | null): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { resolve, reject } of waiting) {
      if (failure === null) resolve();
      else reject(failure);
    }
  }
}
