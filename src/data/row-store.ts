/** Label of a token that is not trained on, as in torch's cross entropy. */
export const IGNORED = -100;

/** One encoded row: labels[t] is tokens[t] where the row is trained on that token, else -100. */
export interface EncodedRow {
  /** [T] */
  readonly tokens: Int32Array;
  /** [T] */
  readonly labels: Int32Array;
  /** [T] weight of each label; null: 1 everywhere. */
  readonly weights: Float32Array | null;
}

/** A row as it comes from a template or a file. */
export interface NewRow {
  readonly tokens: ArrayLike<number>;
  readonly labels: ArrayLike<number>;
  readonly weights?: ArrayLike<number> | null;
}

const CUT = 1;
const TEXT_LOST = 2;
const FIRST_IS_LABEL = 4;

/** Tokens of a chunk; a longer row has one of its own. */
const CHUNK_TOKENS = 1 << 18;

/** Rows that lie back to back. */
interface Chunk {
  readonly tokens: Int32Array;
  /** A bit a token: it is its own label. */
  readonly trained: Uint8Array;
  /** Labels of a chunk in which some label is neither its token nor -100. */
  labels: Int32Array | null;
  /** Of chunks where some weight is not 1. */
  weights: Float32Array | null;
  used: number;
}

/**
 * Encoded rows, whose number is not known in advance. A token takes little more than four bytes. Rows lie in chunks, so growing copies
 * nothing. A chunk with a label that is not its token (rows of ready ids may have those), or with a weight other than 1, takes four more
 * bytes a token.
 */
export class RowStore {
  readonly #chunks: Chunk[] = [];
  #rows = 0;
  #chunkOf = new Uint32Array(1024);
  #begin = new Uint32Array(1024);
  #length = new Uint32Array(1024);
  /** Labels after the first position. */
  #lossTokens = new Uint32Array(1024);
  #flags = new Uint8Array(1024);

  get size(): number {
    return this.#rows;
  }

  /** `truncated`: the row was truncated; `textLost`: text of an answer is missing from it. */
  add(row: NewRow, truncated = false, textLost = false): void {
    const { tokens, labels, weights = null } = row;
    const length = tokens.length;
    const chunk = this.#chunkFor(length);
    const begin = chunk.used;
    chunk.used += length;
    chunk.tokens.set(tokens, begin);
    chunk.labels?.set(labels, begin);
    let lossTokens = 0;
    for (let t = 0; t < length; t++) {
      if (labels[t] === IGNORED) continue;
      if (t > 0) lossTokens += 1;
      if (labels[t] !== tokens[t] && chunk.labels === null) chunk.labels = writtenOut(chunk, labels, begin);
      const at = begin + t;
      chunk.trained[at >> 3]! |= 1 << (at & 7);
    }
    if (weights !== null) {
      chunk.weights ??= new Float32Array(chunk.tokens.length).fill(1);
      chunk.weights.set(weights, begin);
    }
    this.#note(begin, length, lossTokens, flagsOf(labels, truncated, textLost));
  }

  length(row: number): number {
    return this.#length[row]!;
  }

  /** Tokens of the row that a loss is taken on: labels after the first position that are not -100. */
  lossTokens(row: number): number {
    return this.#lossTokens[row]!;
  }

  /** The sum of these labels' weights: their number where the row has no weights. */
  lossWeight(row: number): number {
    const chunk = this.#chunks[this.#chunkOf[row]!]!;
    if (chunk.weights === null) return this.lossTokens(row);
    const begin = this.#begin[row]!;
    let sum = 0;
    for (let at = begin + 1; at < begin + this.length(row); at++) if (isLabel(chunk, at)) sum += chunk.weights[at]!;
    return sum;
  }

  /** Labels that are not -100, the first position's included. */
  labelTokens(row: number): number {
    return this.lossTokens(row) + ((this.#flags[row]! & FIRST_IS_LABEL) !== 0 ? 1 : 0);
  }

  wasCut(row: number): boolean {
    return (this.#flags[row]! & CUT) !== 0;
  }

  lostText(row: number): boolean {
    return (this.#flags[row]! & TEXT_LOST) !== 0;
  }

  /** Tokens and weights are views. */
  row(row: number): EncodedRow {
    const chunk = this.#chunks[this.#chunkOf[row]!]!;
    const begin = this.#begin[row]!;
    const end = begin + this.length(row);
    const tokens = chunk.tokens.subarray(begin, end);
    const labels =
      chunk.labels?.subarray(begin, end) ?? tokens.map((token, t) => (isLabel(chunk, begin + t) ? token : IGNORED));
    return { tokens, labels, weights: chunk.weights?.subarray(begin, end) ?? null };
  }

  #chunkFor(length: number): Chunk {
    const last = this.#chunks.at(-1);
    if (last !== undefined && last.used + length <= last.tokens.length) return last;
    const room = Math.max(CHUNK_TOKENS, length);
    const chunk = {
      tokens: new Int32Array(room),
      trained: new Uint8Array(Math.ceil(room / 8)),
      labels: null,
      weights: null,
      used: 0,
    };
    this.#chunks.push(chunk);
    return chunk;
  }

  #note(begin: number, length: number, lossTokens: number, flags: number): void {
    const row = this.#rows++;
    if (row === this.#flags.length) {
      this.#chunkOf = doubled(this.#chunkOf);
      this.#begin = doubled(this.#begin);
      this.#length = doubled(this.#length);
      this.#lossTokens = doubled(this.#lossTokens);
      const flagsBefore = this.#flags;
      this.#flags = new Uint8Array(2 * row);
      this.#flags.set(flagsBefore);
    }
    this.#chunkOf[row] = this.#chunks.length - 1;
    this.#begin[row] = begin;
    this.#length[row] = length;
    this.#lossTokens[row] = lossTokens;
    this.#flags[row] = flags;
  }
}

function isLabel({ trained }: Chunk, at: number): boolean {
  return (trained[at >> 3]! & (1 << (at & 7))) !== 0;
}

function flagsOf(labels: ArrayLike<number>, truncated: boolean, textLost: boolean): number {
  const first = labels.length > 0 && labels[0] !== IGNORED;
  return (truncated ? CUT : 0) | (textLost ? TEXT_LOST : 0) | (first ? FIRST_IS_LABEL : 0);
}

/** All labels of a chunk, the row's own from `begin` on. */
function writtenOut(chunk: Chunk, own: ArrayLike<number>, begin: number): Int32Array {
  const labels = new Int32Array(chunk.tokens.length);
  for (let at = 0; at < begin; at++) labels[at] = isLabel(chunk, at) ? chunk.tokens[at]! : IGNORED;
  labels.set(own, begin);
  return labels;
}

function doubled(values: Uint32Array<ArrayBuffer>): Uint32Array<ArrayBuffer> {
  const larger = new Uint32Array(2 * values.length);
  larger.set(values);
  return larger;
}
