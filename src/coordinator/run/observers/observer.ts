import type { Reporter, Shown } from "../reporter.ts";

/** Hears of a run beside what shows it: files and servers that a run goes on without. */
export interface Observer extends Partial<Reporter> {
  /** What was heard is written or given up. `error`: what ended the run; null: it was done. */
  close(error: unknown): Promise<void>;
}

/** Tells `shown` and every observer. */
export function withObservers(shown: Shown, observers: readonly Observer[]): Reporter {
  const each = <K extends keyof Reporter>(key: K) =>
    ((...args: unknown[]) => {
      for (const one of [shown, ...observers])
        ((one as Partial<Reporter>)[key] as ((...all: unknown[]) => void) | undefined)?.apply(one, args);
    }) as Reporter[K];
  return {
    plan: each("plan"),
    preflight: each("preflight"),
    note: each("note"),
    step: each("step"),
    log: each("log"),
    predictions: each("predictions"),
    samples: each("samples"),
    saved: each("saved"),
    end: each("end"),
    failed: each("failed"),
    began: each("began"),
    lastStep: each("lastStep"),
  };
}

/** Work of an observer, one piece after the other; what fails costs that alone, and is said once. */
export class Background {
  readonly #said: (message: string) => void;
  #work: Promise<void> = Promise.resolve();
  #failed = false;

  /** `failed` hears of the first failure, in a sentence. */
  constructor(failed: (message: string) => void) {
    this.#said = failed;
  }

  add(work: () => Promise<void>): void {
    this.#work = this.#work.then(work).catch((error: Error) => {
      if (!this.#failed) this.#said(error.message);
      this.#failed = true;
    });
  }

  done(): Promise<void> {
    return this.#work;
  }
}
