/** For up to this many symbols, the next merge is searched among all of them; above it a heap keeps them in order. */
const FEW = 48;

/** Which pairs of symbols merge, in which order, and the result: an open hash table over typed arrays. */
class Merges {
  readonly #mask: number;
  readonly #left: Int32Array;
  readonly #right: Int32Array;
  readonly #rank: Int32Array;

  constructor(pairs: number) {
    const size = 2 ** Math.ceil(Math.log2(Math.max(2, 2 * pairs)));
    this.#mask = size - 1;
    this.#left = new Int32Array(size).fill(-1);
    this.#right = new Int32Array(size);
    this.#rank = new Int32Array(size);
  }

  /** A pair that comes again has its last rank. */
  set(left: number, right: number, rank: number): void {
    const at = this.#slot(left, right);
    this.#left[at] = left;
    this.#right[at] = right;
    this.#rank[at] = rank;
  }

  /** -1: they do not merge. */
  rank(left: number, right: number): number {
    const at = this.#slot(left, right);
    return this.#left[at] === -1 ? -1 : this.#rank[at]!;
  }

  #slot(left: number, right: number): number {
    let at = (Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)) >>> 7;
    at &= this.#mask;
    while (this.#left[at] !== -1 && (this.#left[at] !== left || this.#right[at] !== right)) at = (at + 1) & this.#mask;
    return at;
  }
}

/**
 * Byte-pair merges of one piece of text after another (Sennrich et al., 2016): among all neighbours, the pair that was learnt first merges
 * first; of two equal pairs, the left one. The JavaScript library needs an object a symbol and a text a pair; this works on numbers.
 */
export class BytePairs {
  readonly #symbols = new Map<string, number>();
  readonly #texts: string[] = [];
  readonly #merges: Merges;
  /** [rank] the symbol that the pair becomes. */
  readonly #merged: Int32Array;

  /** `merges`: pairs in the order in which they were learnt. */
  constructor(merges: readonly (readonly [string, string])[]) {
    this.#merges = new Merges(merges.length);
    this.#merged = new Int32Array(merges.length);
    for (const [rank, [left, right]] of merges.entries()) {
      this.#merges.set(this.#symbol(left), this.#symbol(right), rank);
      this.#merged[rank] = this.#symbol(left + right);
    }
  }

  /** The symbols of a piece: its characters, merged until none of their neighbours merge. */
  split(piece: string): string[] {
    const symbols = Int32Array.from(piece, (character) => this.#symbols.get(character) ?? -1);
    // Characters that no merge contains stay as they are.
    const strange = symbols.includes(-1) ? [...piece] : null;
    const next = Int32Array.from(symbols, (_symbol, at) => (at + 1 < symbols.length ? at + 1 : -1));
    if (symbols.length <= FEW) this.#mergeFew(symbols, next);
    else this.#mergeMany(symbols, next);
    const texts: string[] = [];
    for (let at = symbols.length > 0 ? 0 : -1; at !== -1; at = next[at]!) {
      texts.push(symbols[at] === -1 ? strange![at]! : this.#texts[symbols[at]!]!);
    }
    return texts;
  }

  #symbol(text: string): number {
    const known = this.#symbols.get(text);
    if (known !== undefined) return known;
    this.#symbols.set(text, this.#texts.length);
    return this.#texts.push(text) - 1;
  }

  #rank(left: number, right: number): number {
    return left === -1 || right === -1 ? -1 : this.#merges.rank(left, right);
  }

  #mergeFew(symbols: Int32Array, next: Int32Array): void {
    // [symbol] the rank of its merge with the next one.
    const ranks = symbols.map((symbol, at) => (next[at] === -1 ? -1 : this.#rank(symbol, symbols[next[at]!]!)));
    for (;;) {
      let best = -1;
      let before = -1;
      let beforeBest = -1;
      for (let at = 0; at !== -1 && at < symbols.length; before = at, at = next[at]!) {
        if (ranks[at]! < 0 || (best !== -1 && ranks[at]! >= ranks[best]!)) continue;
        best = at;
        beforeBest = before;
      }
      if (best === -1) return;
      const after = next[next[best]!]!;
      symbols[best] = this.#merged[ranks[best]!]!;
      next[best] = after;
      ranks[best] = after === -1 ? -1 : this.#rank(symbols[best]!, symbols[after]!);
      if (beforeBest !== -1) ranks[beforeBest] = this.#rank(symbols[beforeBest]!, symbols[best]!);
    }
  }

  #mergeMany(symbols: Int32Array, next: Int32Array): void {
    const previous = symbols.map((_symbol, at) => at - 1);
    const gone = new Uint8Array(symbols.length);
    const heap = new Heap(symbols.length);
    const look = (at: number) => {
      if (at === -1 || next[at] === -1) return;
      const rank = this.#rank(symbols[at]!, symbols[next[at]!]!);
      if (rank !== -1) heap.push(rank, at);
    };
    for (let at = 0; at < symbols.length; at++) look(at);
    while (heap.pop()) {
      const { rank, at } = heap;
      // Skips a merge that was noted before one of its symbols changed.
      if (gone[at] === 1 || next[at] === -1 || this.#rank(symbols[at]!, symbols[next[at]!]!) !== rank) continue;
      const taken = next[at]!;
      gone[taken] = 1;
      symbols[at] = this.#merged[rank]!;
      next[at] = next[taken]!;
      if (next[at] !== -1) previous[next[at]!] = at;
      look(previous[at]!);
      look(at);
    }
  }
}

/** The least rank comes first; of equal ranks, the leftmost place. */
class Heap {
  rank = 0;
  at = 0;
  readonly #keys: Float64Array;
  #size = 0;
  readonly #places: number;

  /** Each merge notes two neighbours, each symbol one at first. */
  constructor(places: number) {
    this.#places = places;
    this.#keys = new Float64Array(3 * places);
  }

  push(rank: number, at: number): void {
    const key = rank * this.#places + at;
    let hole = this.#size++;
    while (hole > 0) {
      const parent = (hole - 1) >> 1;
      if (this.#keys[parent]! <= key) break;
      this.#keys[hole] = this.#keys[parent]!;
      hole = parent;
    }
    this.#keys[hole] = key;
  }

  /** Removes the first entry and stores it in `rank` and `at`; false: the heap is empty. */
  pop(): boolean {
    if (this.#size === 0) return false;
    const first = this.#keys[0]!;
    this.rank = Math.floor(first / this.#places);
    this.at = first % this.#places;
    const last = this.#keys[--this.#size]!;
    let hole = 0;
    for (;;) {
      let child = 2 * hole + 1;
      if (child >= this.#size) break;
      if (child + 1 < this.#size && this.#keys[child + 1]! < this.#keys[child]!) child += 1;
      if (this.#keys[child]! >= last) break;
      this.#keys[hole] = this.#keys[child]!;
      hole = child;
    }
    this.#keys[hole] = last;
    return true;
  }
}
