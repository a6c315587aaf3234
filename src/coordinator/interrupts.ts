import { deferred } from "../common/deferred.ts";
import { PipeloraError } from "../common/errors.ts";

/**
 * Ctrl-C and SIGTERM while a run is on. The first asks for an end after the current step; the second calls `onSecond`,
 * which is to end the process at once.
 */
export class Interrupts {
  readonly #first = deferred<never>();
  readonly #handler: () => void;
  #count = 0;

  constructor(onFirst: () => void, onSecond: () => void) {
    this.#handler = () => {
      this.#count++;
      if (this.#count > 1) return onSecond();
      onFirst();
      this.#first.reject(new PipeloraError("PL_INTERRUPTED", "interrupted before the first step; nothing was saved"));
    };
    process.on("SIGINT", this.#handler);
    process.on("SIGTERM", this.#handler);
  }

  get requested(): boolean {
    return this.#count > 0;
  }

  /** For work that has nothing to save yet: rejects with PL_INTERRUPTED as soon as an interrupt comes. */
  during<T>(work: Promise<T>): Promise<T> {
    return Promise.race([work, this.#first.promise]);
  }

  dispose(): void {
    process.off("SIGINT", this.#handler);
    process.off("SIGTERM", this.#handler);
  }
}
