import { exitCodeOfSignal, type StopSignal } from "../common/exit-codes.ts";

/** What a worker does when it is told to stop. `again`: it was told before. */
export type StopHandler = (signal: StopSignal, again: boolean) => void;

/** SIGINT and SIGTERM of a worker: handed to whoever is in charge, else the end of the process. */
export class StopSignals {
  #handler: StopHandler | null = null;
  #first: StopSignal | null = null;

  constructor() {
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => this.#receive(signal));
  }

  /** The first signal that came. */
  get first(): StopSignal | null {
    return this.#first;
  }

  /** null: from now on a signal ends the process at once. */
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
