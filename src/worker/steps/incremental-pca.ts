import type { NativeAddon } from "../../engine/index.ts";

/**
 * The exact decomposition in float32. peft uses random projections here (torch.svd_lowrank), whose last digits can move a rank to another
 * layer.
 */
const EXACT = -1;
const SEED = 42;

/**
 * Principal components of rows that come batch by batch (Ross et al. 2008), as in peft 0.21's IncrementalPCA. Means and variances are float64,
 * rows float32. Each batch decomposes a stack of the components so far, the new rows less their mean, and a row for the change of the mean.
 */
export class IncrementalPca {
  readonly #addon: NativeAddon;
  readonly #threads: number;
  readonly columns: number;
  readonly count: number;
  #seen = 0;
  #mean = new Float64Array(0);
  #variance = new Float64Array(0);
  /** [count, columns], [count] */
  #components = new Float32Array(0);
  #values = new Float32Array(0);

  constructor(addon: NativeAddon, { columns, count, threads }: { columns: number; count: number; threads: number }) {
    this.#addon = addon;
    this.#threads = threads;
    this.columns = columns;
    this.count = count;
    this.#mean = new Float64Array(columns);
    this.#variance = new Float64Array(columns);
  }

  /** [count, columns], orthonormal; empty before the first rows. */
  get components(): Float32Array {
    return this.#components;
  }
  get singularValues(): Float32Array {
    return this.#values;
  }
  get fitted(): boolean {
    return this.#seen > 0;
  }

  /** The share of the rows' variance that each component explains. */
  explained(): Float64Array {
    const total = this.#variance.reduce((sum, one) => sum + one, 0) * this.#seen;
    return Float64Array.from(this.#values, (value) => value ** 2 / total);
  }

  /** Adds rows [n, columns]; n must be at least `count`. */
  async add(rows: Float32Array): Promise<void> {
    const { columns } = this;
    const n = rows.length / columns;
    const first = this.#seen === 0;
    const total = this.#seen + n;
    const sums = new Float64Array(columns);
    for (let at = 0; at < rows.length; at++) sums[at % columns]! += rows[at]!;
    const batchMean = sums.map((sum) => sum / n);
    const squares = new Float64Array(columns);
    const slips = new Float64Array(columns);
    for (let at = 0; at < rows.length; at++) {
      const apart = Math.fround(rows[at]! - batchMean[at % columns]!);
      squares[at % columns]! += apart * apart;
      slips[at % columns]! += apart;
    }
    const ratio = this.#seen / n;
    const variance = squares.map((square, c) => {
      const own = square - slips[c]! ** 2 / n;
      if (first) return own / total;
      const moved = (this.#mean[c]! * this.#seen) / ratio - sums[c]!;
      return (this.#variance[c]! * this.#seen + own + (ratio / total) * moved ** 2) / total;
    });
    const mean = this.#mean.map((last, c) => (last * this.#seen + sums[c]!) / total);

    const kept = first ? 0 : this.count;
    const extra = first ? 0 : kept + 1;
    const stacked = new Float32Array((n + extra) * columns);
    this.#components.forEach((value, at) => {
      stacked[at] = this.#values[Math.floor(at / columns)]! * value;
    });
    for (let at = 0; at < rows.length; at++) stacked[kept * columns + at] = rows[at]! - batchMean[at % columns]!;
    if (!first) {
      const factor = Math.sqrt((this.#seen / total) * n);
      for (let c = 0; c < columns; c++) {
        stacked[(kept + n) * columns + c] = factor * (this.#mean[c]! - batchMean[c]!);
      }
    }
    const shape = [n + extra, columns] as const;
    const { values, right } = await this.#addon.lowRank(stacked, shape, this.count, "svd", EXACT, SEED, this.#threads);
    this.#seen = total;
    this.#mean = mean;
    this.#variance = variance;
    this.#components = signed(Float32Array.from(right), columns);
    this.#values = Float32Array.from(values);
  }
}

/** Gives each row the sign that makes its largest value positive: a component's sign is arbitrary, but must stay the same from batch to batch. */
function signed(rows: Float32Array<ArrayBuffer>, columns: number): Float32Array<ArrayBuffer> {
  for (let first = 0; first < rows.length; first += columns) {
    const row = rows.subarray(first, first + columns);
    const largest = row.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
    if (largest < 0) for (const [at, value] of row.entries()) row[at] = -value;
  }
  return rows;
}

/** The cosine of each component with the same component before. */
export function similarities(now: Float32Array, before: Float32Array, count: number): Float64Array {
  const columns = now.length / count;
  return Float64Array.from({ length: count }, (_, k) => {
    let [dot, own, other] = [0, 0, 0];
    for (let at = k * columns; at < (k + 1) * columns; at++) {
      dot += now[at]! * before[at]!;
      own += now[at]! ** 2;
      other += before[at]! ** 2;
    }
    return dot / Math.max(Math.sqrt(own * other), 1e-8);
  });
}
