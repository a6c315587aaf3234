import { StreamDecoder, type Tokenizer } from "../formats/tokenizer/tokenizer.ts";

export interface TextPiece {
  /** Text that later ids can't change; whole characters only. */
  readonly text: string;
  /** A stop string was completed: no more text follows. */
  readonly stopped: boolean;
}

/**
 * A reply's text as its ids come. What may be the beginning of a stop string is held back until that is decided; the stop string itself
 * and what stands behind it are left out.
 */
export class TextStream {
  readonly #decoder: StreamDecoder;
  readonly #stops: readonly string[];
  #held = "";

  /** `specials`: whether special tokens show. */
  constructor(tokenizer: Tokenizer, stops: readonly string[], specials: boolean) {
    this.#decoder = new StreamDecoder(tokenizer, { skipSpecials: !specials });
    this.#stops = stops.filter((stop) => stop !== "");
  }

  push(id: number): TextPiece {
    return this.#take(this.#decoder.push(id));
  }

  /** The rest, once no id follows. */
  end(): string {
    const { text, stopped } = this.#take(this.#decoder.end());
    const rest = stopped ? "" : this.#held;
    this.#held = "";
    return text + rest;
  }

  #take(added: string): TextPiece {
    this.#held += added;
    const places = this.#stops.map((stop) => this.#held.indexOf(stop)).filter((place) => place >= 0);
    if (places.length > 0) {
      const text = this.#held.slice(0, Math.min(...places));
      this.#held = "";
      return { text, stopped: true };
    }
    const kept = Math.max(0, ...this.#stops.map((stop) => overlap(this.#held, stop)));
    const text = this.#held.slice(0, this.#held.length - kept);
    this.#held = this.#held.slice(this.#held.length - kept);
    return { text, stopped: false };
  }
}

/** Length of the longest end of `text` that `stop` begins with. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length;
  }
  return 0;
}
