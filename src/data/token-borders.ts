import type { Tokenizer } from "../formats/tokenizer/tokenizer.ts";

/** How many tokens before a border may differ from those of the whole text. */
const TAIL = 4;

/**
 * Finds the tokens at which stretches of a text begin and end, for positions in rising order. Only what follows the last border
 * is encoded again, so that a conversation of many turns takes time in proportion to its length. Where those tokens are not
 * the whole text's own (a tokenizer that treats a text's start otherwise), the whole text up to the position is.
 */
export class TokenBorders {
  readonly #tokenizer: Tokenizer;
  readonly #text: string;
  readonly #tokens: readonly number[];
  /** A position at which the text and its tokens can be divided. */
  #anchor = { at: 0, token: 0 };

  /** `tokens`: ids of `text`, special tokens among them. */
  constructor(tokenizer: Tokenizer, text: string, tokens: readonly number[]) {
    this.#tokenizer = tokenizer;
    this.#text = text;
    this.#tokens = tokens;
  }

  /** The token in which the text's position `at` lies, or that begins there; `isEnd`: later positions are looked for from here. */
  tokenAt(at: number, isEnd: boolean): number {
    if (at >= this.#text.length) return this.#tokens.length;
    const { token, clean } = (at >= this.#anchor.at ? this.#from(this.#anchor, at) : null) ?? this.#whole(at);
    if (isEnd && clean) this.#anchor = { at, token };
    return token;
  }

  #from(anchor: { at: number; token: number }, at: number): { token: number; clean: boolean } | null {
    const ids = this.#tokenizer.encode(this.#text.slice(anchor.at, at));
    const same = this.#sameFrom(ids, anchor.token);
    if (same < ids.length - TAIL || (same === 0 && ids.length > 0)) return null;
    return { token: anchor.token + same, clean: same === ids.length };
  }

  #whole(at: number): { token: number; clean: boolean } {
    const ids = this.#tokenizer.encode(this.#text.slice(0, at));
    const same = this.#sameFrom(ids, 0);
    return { token: same, clean: same === ids.length };
  }

  /** How many of `ids` are the text's own from `first` on. */
  #sameFrom(ids: readonly number[], first: number): number {
    const differs = ids.findIndex((id, t) => id !== this.#tokens[first + t]);
    return differs < 0 ? ids.length : differs;
  }
}
