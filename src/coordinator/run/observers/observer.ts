import type { Reporter, Shown } from "../reporter.ts";

/** Receives a run's events to write them to a file or server. A run goes on if it fails. */
export interface Observer extends Partial<Reporter> {
  /** Resolves when all events are written or given up. `error`: what ended the run; null: it was done. */
  close(error: unknown): Promise<void>;
}

/** A reporter that passes everything to `shown` and to every observer. */
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

/** An observer's work, one piece after another. A failed piece is dropped. Only the first failure is reported. */
export class Background {
  readonly #said: (message: string) => void;
  #work: Promise<void> = Promise.resolve();
  #failed = false;

  /** `failed` is called with a sentence about the first failure. */
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
