import { exitCodeOfSignal, type StopSignal } from "../common/exit-codes.ts";

/** What a worker does on a signal to stop. `again`: it is not the first. */
export type StopHandler = (signal: StopSignal, again: boolean) => void;

/** A worker's SIGINT and SIGTERM. They go to the current handler; without one they end the process. */
export class StopSignals {
  #handler: StopHandler | null = null;
  #first: StopSignal | null = null;

  constructor() {
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => this.#receive(signal));
  }

  /** The first signal received; null: none. */
  get first(): StopSignal | null {
    return this.#first;
  }

  /** Sets the handler. Null: from now on a signal ends the process at once. */
  handle(handler: StopHandler | null): void {
    this.#handler = handler;
  }

  #receive(signal: StopSignal): void {
    const again = this.#first !== null;
    this.#first ??= signal;
    if (this.#handler === null) process.exit(exitCodeOfSignal(signal));
    this.#handler(signal, again);
  }
}
