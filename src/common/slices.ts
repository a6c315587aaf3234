import { setImmediate as turn } from "node:timers/promises";

/** How long work may block the event loop at a time, in milliseconds. */
const SLICE_MS = 20;

/** Runs work that yields often, and gives the event loop a turn whenever a slice of time is over. */
export async function inSlices<T>(work: Generator<void, T>): Promise<T> {
  for (;;) {
    const until = performance.now() + SLICE_MS;
    let step = work.next();
    while (step.done !== true && performance.now() < until) step = work.next();
    if (step.done === true) return step.value;
    await turn();
  }
}

/** Gives the event loop a turn whenever a slice of time is over, for work whose awaited values are there already. */
export class Turns {
  #until = performance.now() + SLICE_MS;

  async take(): Promise<void> {
    if (performance.now() < this.#until) return;
    await turn();
    this.#until = performance.now() + SLICE_MS;
  }
}

/** Runs the same work to its end at once. */
export function atOnce<T>(work: Generator<void, T>): T {
  for (;;) {
    const step = work.next();
    if (step.done === true) return step.value;
  }
}
