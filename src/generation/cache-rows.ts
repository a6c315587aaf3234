/** Allocates rows of a key/value cache in contiguous runs. A run is as long as its sequence may become. */
export class CacheRows {
  readonly total: number;
  /** Runs nobody has, by first row. */
  #free: { first: number; count: number }[];

  constructor(total: number) {
    this.total = total;
    this.#free = [{ first: 0, count: total }];
  }

  get free(): number {
    return this.#free.reduce((sum, { count }) => sum + count, 0);
  }

  /** First row of a free run of this length; null: there is none now. Takes the lowest one that is long enough. */
  take(count: number): number | null {
    const index = this.#free.findIndex((run) => run.count >= count);
    const run = this.#free[index];
    if (run === undefined) return null;
    if (run.count === count) this.#free.splice(index, 1);
    else this.#free[index] = { first: run.first + count, count: run.count - count };
    return run.first;
  }

  /** What take() gave. */
  give(first: number, count: number): void {
    const after = this.#free.findIndex((run) => run.first > first);
    const at = after < 0 ? this.#free.length : after;
    const before = this.#free[at - 1];
    const next = this.#free[at];
    const joinsBefore = before !== undefined && before.first + before.count === first;
    const joinsNext = next !== undefined && first + count === next.first;
    const run = {
      first: joinsBefore ? before.first : first,
      count: count + (joinsBefore ? before.count : 0) + (joinsNext ? next.count : 0),
    };
    this.#free.splice(joinsBefore ? at - 1 : at, (joinsBefore ? 1 : 0) + (joinsNext ? 1 : 0), run);
  }
}
