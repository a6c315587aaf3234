/** A score this far below the least one makes a character unknown (google/sentencepiece and Rust's tokenizers). */
const UNKNOWN_PENALTY = 10;

interface Node {
  readonly next: Map<string, Node>;
  id: number;
}

export interface UnigramOptions {
  readonly unknownId: number;
  /** Whether an unknown character becomes its bytes. */
  readonly byteFallback: boolean;
  /** Ids that are never found in a text, such as control pieces. */
  readonly unreachable: ReadonlySet<number>;
  /** Sums in float32, as in SentencePiece, which decides between splits of the same score; Rust's are in float64. */
  readonly float32: boolean;
}

/**
 * The most probable split of a text into pieces (Viterbi over a trie), as in SentencePiece. Consecutive unknown characters are one unknown
 * token, or their bytes if the model has byte pieces (the JavaScript library has no byte pieces there).
 */
export class UnigramModel {
  readonly #root: Node = { next: new Map(), id: -1 };
  readonly #pieces: readonly (readonly [string, number])[];
  readonly #unknown: string;
  readonly #unknownScore: number;
  readonly #byteFallback: boolean;
  readonly #round: (score: number) => number;

  /** `pieces` by id, with their log probabilities. */
  constructor(pieces: readonly (readonly [string, number])[], options: UnigramOptions) {
    const { unknownId, byteFallback, unreachable, float32 } = options;
    this.#pieces = pieces;
    this.#unknown = pieces[unknownId]?.[0] ?? "<unk>";
    this.#round = float32 ? Math.fround : (score) => score;
    this.#byteFallback = byteFallback && pieces.some(([piece]) => piece === "<0x00>");
    let least = Number.POSITIVE_INFINITY;
    for (const [id, [piece, score]] of pieces.entries()) {
      least = Math.min(least, score);
      if (unreachable.has(id)) continue;
      let node = this.#root;
      for (const character of piece) {
        const next = node.next.get(character) ?? { next: new Map(), id: -1 };
        node.next.set(character, next);
        node = next;
      }
      if (piece !== "") node.id = id;
    }
    this.#unknownScore = this.#round(least - UNKNOWN_PENALTY);
  }

  /** Pieces of one text, in order. */
  encode(text: string): string[] {
    const characters = Array.from(text);
    const size = characters.length;
    const best = new Float64Array(size + 1).fill(Number.NEGATIVE_INFINITY);
    const from = new Int32Array(size + 1);
    const ids = new Int32Array(size + 1).fill(-1);
    best[0] = 0;
    const reach = (start: number, end: number, score: number, id: number) => {
      const sum = this.#round(best[start]! + score);
      if (sum <= best[end]!) return;
      best[end] = sum;
      from[end] = start;
      ids[end] = id;
    };
    for (let start = 0; start < size; start++) {
      let single = false;
      let node: Node | undefined = this.#root;
      for (let end = start + 1; end <= size; end++) {
        node = node.next.get(characters[end - 1]!);
        if (node === undefined) break;
        if (node.id < 0) continue;
        single ||= end === start + 1;
        reach(start, end, this.#pieces[node.id]![1], node.id);
      }
      if (!single) reach(start, start + 1, this.#unknownScore, -1);
    }
    const cut: { start: number; end: number; id: number }[] = [];
    for (let end = size; end > 0; end = from[end]!) cut.push({ start: from[end]!, end, id: ids[end]! });
    const pieces: string[] = [];
    let wasUnknown = false;
    for (const { start, end, id } of cut.reverse()) {
      if (id >= 0) pieces.push(this.#pieces[id]![0]);
      else if (this.#byteFallback) pieces.push(...bytePieces(characters.slice(start, end).join("")));
      else if (!wasUnknown) pieces.push(this.#unknown);
      wasUnknown = id < 0;
    }
    return pieces;
  }
}

const bytePieces = (text: string) =>
  Array.from(Buffer.from(text, "utf8"), (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
