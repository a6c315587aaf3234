import type { Points } from "./wire.ts";

/** One optimizer step. Values that a run does not report are null. */
export interface StepRow {
  readonly step: number;
  readonly loss: number | null;
  readonly learningRate: number | null;
  readonly gradientNorm: number | null;
  readonly tokens: number | null;
  readonly ms: number | null;
}

/** Number of rows that are kept. A million steps are then points of eight steps each. */
const MOST_ROWS = 1 << 18;
const FIRST_ROOM = 1 << 10;
const NAMES = ["step", "count", "loss", "low", "high", "rate", "norm", "peak", "tokens", "ms"] as const;
type Name = (typeof NAMES)[number];

/**
 * A run's steps as columns of numbers, NaN for unknown values. Bounded: when it is full, pairs of neighbours become one row, with mean,
 * least and greatest loss, and the sums of tokens and times.
 */
export class StepColumns {
  #columns: Record<Name, Float64Array> = emptyColumns(FIRST_ROOM);
  #length = 0;
  #generation: number;
  readonly #most: number;

  /** `generation`: of the first rows. */
  constructor(generation = 0, most = MOST_ROWS) {
    this.#generation = generation;
    this.#most = most;
  }

  get length(): number {
    return this.#length;
  }

  /** Changes when existing rows are removed or replaced. */
  get generation(): number {
    return this.#generation;
  }

  get firstStep(): number {
    return this.#length === 0 ? 0 : this.#columns.step[0]! - this.#columns.count[0]! + 1;
  }

  get lastStep(): number {
    return this.#length === 0 ? 0 : this.#columns.step[this.#length - 1]!;
  }

  /** A step that is not after the last one is a repeated step: that step and later ones are removed. */
  add(row: StepRow): void {
    if (row.step <= this.lastStep) this.#backTo(row.step);
    if (this.#length === this.#most) this.#halve();
    if (this.#length === this.#columns.step.length) this.#grow();
    const at = this.#length++;
    const { loss, learningRate, gradientNorm, tokens, ms } = row;
    const values: Record<Name, number | null> = {
      ...{ step: row.step, count: 1, loss, low: loss, high: loss },
      ...{ rate: learningRate, norm: gradientNorm, peak: gradientNorm, tokens, ms },
    };
    for (const name of NAMES) this.#columns[name][at] = values[name] ?? Number.NaN;
  }

  /** Speed over the last rows; null if unknown. */
  recent(rows: number): { readonly tokensPerSecond: number | null; readonly msPerStep: number | null } {
    let [tokens, ms, steps] = [0, 0, 0];
    for (let at = Math.max(0, this.#length - rows); at < this.#length; at++) {
      if (!(this.#columns.ms[at]! > 0)) continue;
      tokens += this.#columns.tokens[at]!;
      ms += this.#columns.ms[at]!;
      steps += this.#columns.count[at]!;
    }
    return ms > 0
      ? { tokensPerSecond: known((1000 * tokens) / ms), msPerStep: ms / steps }
      : { tokensPerSecond: null, msPerStep: null };
  }

  /** The rows from `first` on, as they are. */
  since(first: number): Points {
    return this.#points(first, this.#length, Math.max(1, this.#length - first));
  }

  /** The steps `from` to `to`, both included, as at most `most` points. */
  between(from: number, to: number, most: number): Points {
    return this.#points(this.#at(from), this.#at(to + 1), most);
  }

  /** The first row that ends at this step or later. */
  #at(step: number): number {
    let [low, high] = [0, this.#length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#columns.step[middle]! < step) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #points(first: number, end: number, most: number): Points {
    const count = Math.min(most, Math.max(0, end - first));
    const points: { [K in keyof Points]: (number | null)[] } = {
      ...{ step: [], loss: [], lossLow: [], lossHigh: [] },
      ...{ learningRate: [], gradientNorm: [], gradientNormHigh: [], tokensPerSecond: [] },
    };
    for (let point = 0; point < count; point++) {
      const begin = first + Math.floor((point * (end - first)) / count);
      const merged = this.#merged(begin, first + Math.floor(((point + 1) * (end - first)) / count));
      points.step.push(merged.step);
      points.loss.push(known(merged.loss));
      points.lossLow.push(known(merged.low));
      points.lossHigh.push(known(merged.high));
      points.learningRate.push(known(merged.rate));
      points.gradientNorm.push(known(merged.norm));
      points.gradientNormHigh.push(known(merged.peak));
      points.tokensPerSecond.push(known((1000 * merged.tokens) / merged.ms));
    }
    return points as Points;
  }

  /** Rows `begin` to before `end`, of which there is at least one, as one. */
  #merged(begin: number, end: number): Record<Name, number> {
    const { step, count, loss, low, high, rate, norm, peak, tokens, ms } = this.#columns;
    const sum = { steps: 0, known: 0, loss: 0, normed: 0, norm: 0, tokens: 0, ms: 0 };
    let [least, most, largest] = [Number.NaN, Number.NaN, Number.NaN];
    for (let at = begin; at < end; at++) {
      const steps = count[at]!;
      sum.steps += steps;
      if (!Number.isNaN(loss[at]!)) {
        sum.known += steps;
        sum.loss += steps * loss[at]!;
        // Comparisons with NaN are false.
        if (!(least <= low[at]!)) least = low[at]!;
        if (!(most >= high[at]!)) most = high[at]!;
      }
      if (!Number.isNaN(norm[at]!)) {
        sum.normed += steps;
        sum.norm += steps * norm[at]!;
        if (!(largest >= peak[at]!)) largest = peak[at]!;
      }
      if (tokens[at]! >= 0 && ms[at]! > 0) {
        sum.tokens += tokens[at]!;
        sum.ms += ms[at]!;
      }
    }
    const timed = sum.ms > 0;
    return {
      ...{ step: step[end - 1]!, count: sum.steps, loss: sum.loss / sum.known, low: least, high: most },
      ...{ rate: rate[end - 1]!, norm: sum.norm / sum.normed, peak: largest },
      ...{ tokens: timed ? sum.tokens : Number.NaN, ms: timed ? sum.ms : Number.NaN },
    };
  }

  #backTo(step: number): void {
    this.#length = this.#at(step);
    this.#generation++;
  }

  #halve(): void {
    const half = this.#length >> 1;
    for (let row = 0; row < half; row++) {
      const merged = this.#merged(2 * row, 2 * row + 2);
      for (const name of NAMES) this.#columns[name][row] = merged[name];
    }
    this.#length = half;
    this.#generation++;
  }

  #grow(): void {
    const larger = emptyColumns(Math.min(this.#most, 2 * this.#length));
    for (const name of NAMES) larger[name].set(this.#columns[name]);
    this.#columns = larger;
  }
}

function emptyColumns(rows: number): Record<Name, Float64Array> {
  return Object.fromEntries(NAMES.map((name) => [name, new Float64Array(rows)])) as Record<Name, Float64Array>;
}

/** Rounded to seven digits, more than a picture shows: the reply is half as long. */
function known(value: number): number | null {
  return Number.isFinite(value) ? Number(value.toPrecision(7)) : null;
}
