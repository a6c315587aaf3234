import type { EncodedRow, RowStore } from "./row-store.ts";

export interface DatasetStatistics {
  readonly rows: number;
  readonly totalTokens: number;
  /** Labels that are not -100. */
  readonly labelTokens: number;
  readonly min: number;
  readonly median: number;
  readonly p99: number;
  readonly max: number;
  /** Rows cut at the maximal length. */
  readonly truncated: number;
  /** Rows that are kept although none of their tokens is trained on. */
  readonly unlabelled: number;
  /** Rows in which text of an assistant is not trained on because the template leaves it out. */
  readonly textLost: number;
}

/** How many rows lose text of an answer to the template, as a sentence; null where none does. */
export function lostText({ textLost }: DatasetStatistics): string | null {
  return textLost > 0 ? `${textLost} rows: the template leaves out text of an answer, which is not trained on` : null;
}

/** Encoded rows: all that are stored, or a choice of them. */
export class Dataset {
  readonly #store: RowStore;
  /** Numbers of stored rows; null: all, in their order. */
  readonly #rows: ArrayLike<number> | null;
  readonly statistics: DatasetStatistics;

  constructor(store: RowStore, rows: ArrayLike<number> | null = null) {
    this.#store = store;
    this.#rows = rows;
    this.statistics = this.#describe();
  }

  get size(): number {
    return this.#rows?.length ?? this.#store.size;
  }

  row(index: number): EncodedRow {
    return this.#store.row(this.#stored(index));
  }

  rowLength(index: number): number {
    return this.#store.length(this.#stored(index));
  }

  /** Tokens of the row that a loss is taken on: labels after the first position that are not -100. */
  lossTokens(index: number): number {
    return this.#store.lossTokens(this.#stored(index));
  }

  /** The sum of these tokens' weights. */
  lossWeight(index: number): number {
    return this.#store.lossWeight(this.#stored(index));
  }

  /** The rows with these numbers, in that order and as often as they occur, as a dataset over the same memory. */
  select(rows: ArrayLike<number>): Dataset {
    const own = this.#rows;
    return new Dataset(this.#store, own === null ? rows : Uint32Array.from(rows, (row) => own[row]!));
  }

  #stored(index: number): number {
    return this.#rows === null ? index : this.#rows[index]!;
  }

  #describe(): DatasetStatistics {
    const store = this.#store;
    const lengths = Int32Array.from({ length: this.size }, (_, index) => this.rowLength(index)).sort();
    const quantile = (share: number) => lengths[Math.min(lengths.length - 1, Math.floor(share * lengths.length))] ?? 0;
    const sums = { totalTokens: 0, labelTokens: 0, truncated: 0, unlabelled: 0, textLost: 0 };
    for (let index = 0; index < this.size; index++) {
      const row = this.#stored(index);
      sums.totalTokens += store.length(row);
      sums.labelTokens += store.labelTokens(row);
      if (store.lossTokens(row) === 0) sums.unlabelled += 1;
      if (store.wasCut(row)) sums.truncated += 1;
      if (store.lostText(row)) sums.textLost += 1;
    }
    return {
      rows: this.size,
      ...sums,
      min: lengths[0] ?? 0,
      median: quantile(0.5),
      p99: quantile(0.99),
      max: lengths.at(-1) ?? 0,
    };
  }
}
