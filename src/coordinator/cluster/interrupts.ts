import { deferred } from "../../common/deferred.ts";
import { Interrupted, type StopSignal } from "../../common/exit-codes.ts";

/**
 * Ctrl-C and SIGTERM while a run is on. The first asks for an end after the current step; the second calls `onSecond`,
 * which is to end the process at once.
 */
export class Interrupts {
  readonly #first = deferred<never>();
  readonly #handler: (signal: StopSignal) => void;
  #signal: StopSignal | null = null;

  constructor(onFirst: () => void, onSecond: (signal: StopSignal) => void) {
    this.#handler = (signal) => {
      if (this.#signal !== null) return onSecond(signal);
      this.#signal = signal;
      onFirst();
      this.#first.reject(new Interrupted(signal, "interrupted before a step was under way; nothing new was saved"));
    };
    process.on("SIGINT", this.#handler);
    process.on("SIGTERM", this.#handler);
  }

  /** The first signal that came. */
  get signal(): StopSignal | null {
    return this.#signal;
  }

  /** Rejects with PL_INTERRUPTED when the first signal comes. */
  get first(): Promise<never> {
    return this.#first.promise;
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
