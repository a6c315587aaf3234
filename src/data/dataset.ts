/** Label of a token that is not trained on, as in torch's cross entropy. */
export const IGNORED = -100;

/** One encoded row: labels[t] is tokens[t] where the row is trained on that token, else -100. */
export interface EncodedRow {
  readonly tokens: Int32Array;
  readonly labels: Int32Array;
}

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
  /** Rows kept although no token of theirs is trained on. */
  readonly unlabelled: number;
  /** Rows of which an assistant's text does not stand in what is trained on: the template leaves it out. */
  readonly textLost: number;
}

/** How many rows lose text of an answer to the template, as a sentence; null where none does. */
export function lostText({ textLost }: DatasetStatistics): string | null {
  return textLost > 0 ? `${textLost} rows: the template leaves out text of an answer, which is not trained on` : null;
}

const CUT = 1;
const TEXT_LOST = 2;

/** Rows that lie back to back in two flat arrays. */
interface Storage {
  readonly tokens: Int32Array;
  readonly labels: Int32Array;
  /** [rows + 1] */
  readonly offsets: readonly number[];
  /** [rows] CUT, TEXT_LOST */
  readonly flags: readonly number[];
}

/** Encoded rows: all that are stored, or a choice of them. */
export class Dataset {
  readonly #storage: Storage;
  /** Numbers of stored rows; null: all, in their order. */
  readonly #rows: ArrayLike<number> | null;
  readonly statistics: DatasetStatistics;

  constructor(storage: Storage, rows: ArrayLike<number> | null = null) {
    this.#storage = storage;
    this.#rows = rows;
    this.statistics = this.#describe();
  }

  get size(): number {
    return this.#rows?.length ?? this.#storage.offsets.length - 1;
  }

  /** Views, not copies. */
  row(index: number): EncodedRow {
    const [begin, end] = this.#bounds(index);
    return { tokens: this.#storage.tokens.subarray(begin, end), labels: this.#storage.labels.subarray(begin, end) };
  }

  rowLength(index: number): number {
    const [begin, end] = this.#bounds(index);
    return end - begin;
  }

  /** Tokens of the row that a loss is taken on: labels after the first position that are not -100. */
  lossTokens(index: number): number {
    const [begin, end] = this.#bounds(index);
    return this.#countLabels(begin + 1, end);
  }

  /** The rows given, in that order and as often as they come, as a dataset over the same memory. */
  select(rows: ArrayLike<number>): Dataset {
    const own = this.#rows;
    return new Dataset(this.#storage, own === null ? rows : Uint32Array.from(rows, (row) => own[row]!));
  }

  #stored(index: number): number {
    return this.#rows === null ? index : this.#rows[index]!;
  }

  #bounds(index: number): [number, number] {
    const row = this.#stored(index);
    return [this.#storage.offsets[row]!, this.#storage.offsets[row + 1]!];
  }

  #countLabels(begin: number, end: number): number {
    const { labels } = this.#storage;
    let count = 0;
    for (let t = begin; t < end; t++) if (labels[t] !== IGNORED) count += 1;
    return count;
  }

  #describe(): DatasetStatistics {
    const lengths = Int32Array.from({ length: this.size }, (_, index) => this.rowLength(index)).sort();
    const quantile = (share: number) => lengths[Math.min(lengths.length - 1, Math.floor(share * lengths.length))] ?? 0;
    const sums = { totalTokens: 0, labelTokens: 0, truncated: 0, unlabelled: 0, textLost: 0 };
    for (let index = 0; index < this.size; index++) {
      const [begin, end] = this.#bounds(index);
      const flags = this.#storage.flags[this.#stored(index)]!;
      sums.totalTokens += end - begin;
      sums.labelTokens += this.#countLabels(begin, end);
      if (this.#countLabels(begin + 1, end) === 0) sums.unlabelled += 1;
      if ((flags & CUT) !== 0) sums.truncated += 1;
      if ((flags & TEXT_LOST) !== 0) sums.textLost += 1;
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

/** Collects rows of unknown number into flat arrays that double as they fill. */
export class DatasetBuilder {
  #tokens = new Int32Array(1 << 16);
  #labels = new Int32Array(1 << 16);
  readonly #offsets = [0];
  readonly #flags: number[] = [];

  get size(): number {
    return this.#flags.length;
  }

  add(
    row: { readonly tokens: ArrayLike<number>; readonly labels: ArrayLike<number> },
    truncated: boolean,
    textLost = false,
  ): void {
    const begin = this.#offsets.at(-1)!;
    const end = begin + row.tokens.length;
    while (end > this.#tokens.length) {
      this.#tokens = grown(this.#tokens);
      this.#labels = grown(this.#labels);
    }
    this.#tokens.set(row.tokens, begin);
    this.#labels.set(row.labels, begin);
    this.#offsets.push(end);
    this.#flags.push((truncated ? CUT : 0) | (textLost ? TEXT_LOST : 0));
  }

  build(): Dataset {
    const total = this.#offsets.at(-1)!;
    return new Dataset({
      tokens: this.#tokens.slice(0, total),
      labels: this.#labels.slice(0, total),
      offsets: this.#offsets,
      flags: this.#flags,
    });
  }
}

function grown(values: Int32Array<ArrayBuffer>): Int32Array<ArrayBuffer> {
  const larger = new Int32Array(values.length * 2);
  larger.set(values);
  return larger;
}
