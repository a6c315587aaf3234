import type { Tokenizer } from "../../formats/tokenizer/tokenizer.ts";
import type { DrawnToken, LikelyToken } from "../../generation/round.ts";

interface ChatToken {
  readonly token: string;
  readonly logprob: number;
  /** UTF-8 bytes; null: the token is not a sequence of whole characters. */
  readonly bytes: number[] | null;
}

export interface ChatLogprobs {
  readonly content: (ChatToken & { readonly top_logprobs: ChatToken[] })[];
  readonly refusal: null;
}

export interface CompletionLogprobs {
  readonly tokens: string[];
  readonly token_logprobs: number[];
  readonly top_logprobs: Record<string, number>[];
  readonly text_offset: number[];
}

export function chatLogprobs(tokenizer: Tokenizer, tokens: readonly DrawnToken[]): ChatLogprobs {
  const shown = (token: LikelyToken): ChatToken => {
    const text = tokenizer.decode([token.id]);
    return {
      token: text,
      logprob: token.logProbability,
      bytes: text.includes("\ufffd") ? null : [...Buffer.from(text)],
    };
  };
  return {
    content: tokens.map((token) => ({ ...shown(token), top_logprobs: token.likeliest.map(shown) })),
    refusal: null,
  };
}

/** `offset`: where the first token's text begins in the reply. */
export function completionLogprobs(
  tokenizer: Tokenizer,
  tokens: readonly DrawnToken[],
  offset: number,
): CompletionLogprobs {
  const texts = tokens.map(({ id }) => tokenizer.decode([id]));
  let end = offset;
  return {
    tokens: texts,
    token_logprobs: tokens.map(({ logProbability }) => logProbability),
    top_logprobs: tokens.map((token) =>
      // As in OpenAI's API, the chosen token is in the list too.
      Object.fromEntries(
        [...token.likeliest, token].map((likely) => [tokenizer.decode([likely.id]), likely.logProbability]),
      ),
    ),
    text_offset: texts.map((text) => {
      const begin = end;
      end += text.length;
      return begin;
    }),
  };
}
