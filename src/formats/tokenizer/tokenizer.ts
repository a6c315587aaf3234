/** What the program needs of a tokenizer, whatever its files. */
export interface Tokenizer {
  /**
   * Ids of a text. `specials` (default true, as in transformers): special tokens written in the text become their ids. `addSpecials`
   * (default false): adds what the tokenizer puts around a text, such as BOS.
   */
  encode(text: string, options?: EncodeOptions): number[];
  /** `skipSpecials` (default false) leaves special tokens out. Incomplete UTF-8 shows as U+FFFD. */
  decode(ids: readonly number[], options?: DecodeOptions): string;
  /** Id of one special or ordinary token written as text; null where there is none. */
  tokenId(token: string): number | null;
  readonly bosId: number | null;
  readonly eosId: number | null;
  readonly padId: number | null;
  /** Whether `addSpecials` puts bosId first. */
  readonly addBos: boolean;
  /** One more than the largest id. */
  readonly vocabSize: number;
  /** Jinja source of the tokenizer's chat template; null where it has none. */
  readonly chatTemplate: string | null;
  /** A warning about the template's origin; null or absent: none. */
  readonly chatTemplateRemark?: string | null;
  /** Qwen (v1)'s tiktoken file, whose model was trained with ChatML. */
  readonly isQwen1: boolean;
  /** Special tokens by the names that templates use: bos_token, eos_token, … */
  readonly specialTokens: Readonly<Record<string, string>>;
}

export interface EncodeOptions {
  readonly specials?: boolean;
  readonly addSpecials?: boolean;
}

export interface DecodeOptions {
  readonly skipSpecials?: boolean;
}

/**
 * Turns a stream of ids into text. `push` returns only text that later ids can't change, so a character whose bytes have not all come is
 * kept back. Each call decodes a short window, because a token's text may depend on the token before it.
 */
export class StreamDecoder {
  readonly #tokenizer: Tokenizer;
  readonly #options: DecodeOptions;
  #ids: number[] = [];
  /** The window starts at the last ids already shown, so that leading-space rules see their neighbour. */
  #windowStart = 0;
  #shown = 0;

  constructor(tokenizer: Tokenizer, options: DecodeOptions = { skipSpecials: true }) {
    this.#tokenizer = tokenizer;
    this.#options = options;
  }

  push(id: number): string {
    this.#ids.push(id);
    const text = this.#tokenizer.decode(this.#ids.slice(this.#windowStart), this.#options);
    if (text.endsWith("\ufffd")) return "";
    return this.#show(text);
  }

  /** The rest, complete or not. */
  end(): string {
    return this.#show(this.#tokenizer.decode(this.#ids.slice(this.#windowStart), this.#options));
  }

  #show(text: string): string {
    const before = this.#tokenizer.decode(this.#ids.slice(this.#windowStart, this.#shown), this.#options);
    this.#windowStart = this.#shown;
    this.#shown = this.#ids.length;
    return text.slice(before.length);
  }
}
