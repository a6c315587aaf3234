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

/** Encoded rows, back to back in two flat arrays. */
export class Dataset {
  readonly #tokens: Int32Array;
  readonly #labels: Int32Array;
  /** [rows + 1] */
  readonly #offsets: readonly number[];
  readonly statistics: DatasetStatistics;

  constructor(tokens: Int32Array, labels: Int32Array, offsets: readonly number[], truncated: number, textLost = 0) {
    this.#tokens = tokens;
    this.#labels = labels;
    this.#offsets = offsets;
    this.statistics = this.#describe(truncated, textLost);
  }

  get size(): number {
    return this.#offsets.length - 1;
  }

  /** Views, not copies. */
  row(index: number): EncodedRow {
    const [begin, end] = [this.#offsets[index]!, this.#offsets[index + 1]!];
    return { tokens: this.#tokens.subarray(begin, end), labels: this.#labels.subarray(begin, end) };
  }

  rowLength(index: number): number {
    return this.#offsets[index + 1]! - this.#offsets[index]!;
  }

  /** Tokens of the row that a loss is taken on: labels after the first position that are not -100. */
  lossTokens(index: number): number {
    return this.#countLabels(this.#offsets[index]! + 1, this.#offsets[index + 1]!);
  }

  /** The rows given, in that order, as a dataset of their own. */
  select(rows: readonly number[]): Dataset {
    const builder = new DatasetBuilder();
    for (const index of rows) builder.add(this.row(index), false);
    return builder.build();
  }

  #countLabels(begin: number, end: number): number {
    let count = 0;
    for (let t = begin; t < end; t++) if (this.#labels[t] !== IGNORED) count += 1;
    return count;
  }

  #describe(truncated: number, textLost: number): DatasetStatistics {
    const lengths = Int32Array.from({ length: this.size }, (_, index) => this.rowLength(index)).sort();
    const quantile = (share: number) => lengths[Math.min(lengths.length - 1, Math.floor(share * lengths.length))] ?? 0;
    let unlabelled = 0;
    for (let index = 0; index < this.size; index++) if (this.lossTokens(index) === 0) unlabelled += 1;
    return {
      rows: this.size,
      totalTokens: this.#tokens.length,
      labelTokens: this.#countLabels(0, this.#labels.length),
      min: lengths[0] ?? 0,
      median: quantile(0.5),
      p99: quantile(0.99),
      max: lengths.at(-1) ?? 0,
      truncated,
      unlabelled,
      textLost,
    };
  }
}

/** Collects rows of unknown number into flat arrays that double as they fill. */
export class DatasetBuilder {
  #tokens = new Int32Array(1 << 16);
  #labels = new Int32Array(1 << 16);
  readonly #offsets = [0];
  #truncated = 0;
  #textLost = 0;

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
    if (truncated) this.#truncated += 1;
    if (textLost) this.#textLost += 1;
  }

  build(): Dataset {
    const total = this.#offsets.at(-1)!;
    return new Dataset(
      this.#tokens.slice(0, total),
      this.#labels.slice(0, total),
      this.#offsets,
      this.#truncated,
      this.#textLost,
    );
  }
}

function grown(values: Int32Array<ArrayBuffer>): Int32Array<ArrayBuffer> {
  const larger = new Int32Array(values.length * 2);
  larger.set(values);
  return larger;
}
