import { PipeloraError } from "../../common/errors.ts";
import { QWEN_SPECIALS } from "./tiktoken.ts";

/** Qwen's pieces in JavaScript's syntax (no inline case folding there). */
const PIECES =
  /'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+/gu;

interface Word {
  readonly symbols: number[];
  readonly count: number;
}

/**
 * Byte-level byte-pair encoding (Sennrich et al., 2016) learnt from `texts`: the contents of a qwen.tiktoken file, 256
 * bytes first, then merges by falling count. `vocabSize` counts Qwen's special tokens, which follow the ranks. Ties go to
 * the pair whose ids are smaller, so the same text gives the same file. Fewer merges than asked for are made where
 * no pair occurs twice. Error: PL_CONFIG_INVALID.
 */
export function trainBpe(texts: Iterable<string>, vocabSize: number): string {
  const ranks = vocabSize - QWEN_SPECIALS.length;
  if (!Number.isInteger(ranks) || ranks < 256) {
    throw new PipeloraError("PL_CONFIG_INVALID", `A vocabulary of ${vocabSize} tokens is too small.`, {
      hint: `Take at least ${256 + QWEN_SPECIALS.length}: every byte and Qwen's special tokens.`,
    });
  }
  const words = countWords(texts);
  const tokens: Buffer[] = Array.from({ length: 256 }, (_, byte) => Buffer.of(byte));
  const pairs = new PairCounts(words);
  while (tokens.length < ranks) {
    const best = pairs.mostFrequent();
    if (best === null) break;
    tokens.push(Buffer.concat([tokens[best.left]!, tokens[best.right]!]));
    pairs.merge(best.left, best.right, tokens.length - 1);
  }
  return tokens.map((token, rank) => `${token.toString("base64")} ${rank}\n`).join("");
}

function countWords(texts: Iterable<string>): Word[] {
  const counts = new Map<string, number>();
  for (const text of texts) {
    for (const [piece] of text.normalize("NFC").matchAll(PIECES)) counts.set(piece, (counts.get(piece) ?? 0) + 1);
  }
  return [...counts].map(([piece, count]) => ({ symbols: [...Buffer.from(piece, "utf8")], count }));
}

/** A pair's key is left * 2^21 + right: numbers order pairs by left, then right. */
const SHIFT = 2 ** 21;

/** Counts of adjacent pairs, kept up to date as merges are made. */
class PairCounts {
  readonly #words: readonly Word[];
  readonly #counts = new Map<number, number>();
  readonly #where = new Map<number, Set<number>>();
  /** May hold outdated counts, but never too small ones: a merge only lowers the counts of existing pairs. */
  readonly #queue = new PairQueue();

  constructor(words: readonly Word[]) {
    this.#words = words;
    for (const index of words.keys()) this.#add(index, 1, () => true);
    for (const [key, count] of this.#counts) this.#queue.push(key, count);
  }

  /** Takes the most frequent pair off the queue; null where none occurs twice. */
  mostFrequent(): { left: number; right: number } | null {
    for (let top = this.#queue.pop(); top !== null; top = this.#queue.pop()) {
      const count = this.#counts.get(top.key) ?? 0;
      if (count === top.count) return count < 2 ? null : { left: Math.floor(top.key / SHIFT), right: top.key % SHIFT };
      if (count > 0) this.#queue.push(top.key, count);
    }
    return null;
  }

  merge(left: number, right: number, merged: number): void {
    const fresh = new Set<number>();
    // Pairs of other symbols stay as they are.
    const touched = (a: number, b: number) =>
      a === left || a === right || a === merged || b === left || b === right || b === merged;
    for (const index of [...(this.#where.get(left * SHIFT + right) ?? [])]) {
      this.#add(index, -1, touched);
      const { symbols } = this.#words[index]!;
      let kept = 0;
      for (let i = 0; i < symbols.length; i++) {
        const here = symbols[i] === left && symbols[i + 1] === right;
        symbols[kept++] = here ? merged : symbols[i]!;
        if (here) i += 1;
      }
      symbols.length = kept;
      this.#add(index, 1, touched);
      for (let i = 0; i + 1 < symbols.length; i++) {
        if (symbols[i] === merged || symbols[i + 1] === merged) fresh.add(symbols[i]! * SHIFT + symbols[i + 1]!);
      }
    }
    for (const key of fresh) this.#queue.push(key, this.#counts.get(key)!);
  }

  /** Adds (or takes away) those pairs of one word that `which` names. */
  #add(index: number, sign: 1 | -1, which: (left: number, right: number) => boolean): void {
    const { symbols, count } = this.#words[index]!;
    for (let i = 0; i + 1 < symbols.length; i++) {
      if (!which(symbols[i]!, symbols[i + 1]!)) continue;
      const key = symbols[i]! * SHIFT + symbols[i + 1]!;
      this.#counts.set(key, (this.#counts.get(key) ?? 0) + sign * count);
      let where = this.#where.get(key);
      if (where === undefined) {
        where = new Set();
        this.#where.set(key, where);
      }
      if (sign > 0) where.add(index);
      else where.delete(index);
    }
  }
}

interface QueuedPair {
  readonly key: number;
  readonly count: number;
}

/** A binary heap: largest count first, then smallest key. */
class PairQueue {
  readonly #heap: QueuedPair[] = [];

  push(key: number, count: number): void {
    const heap = this.#heap;
    let at = heap.length;
    const pair = { key, count };
    for (; at > 0; ) {
      const parent = (at - 1) >> 1;
      if (!before(pair, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = pair;
  }

  pop(): QueuedPair | null {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (top === undefined || last === undefined) return null;
    if (heap.length === 0) return top;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child += 1;
      if (!before(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return top;
  }
}

const before = (a: QueuedPair, b: QueuedPair) => a.count > b.count || (a.count === b.count && a.key < b.key);
