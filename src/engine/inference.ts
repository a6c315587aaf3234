/** What inference takes and gives beside tensors, as part of the engine's face. */

/** Of transformers' GenerationConfig. */
export interface SamplingSettings {
  readonly temperature: number;
  readonly topP: number;
  /** 0: all. */
  readonly topK: number;
  /** Only tokens at least so likely as this share of the likeliest; 0: all. */
  readonly minP: number;
  readonly repetitionPenalty: number;
}

/** What of a draw is the token's own. */
export interface TokenDraw {
  /** Of the logits. */
  readonly row: number;
  /** Ids that the repetition penalty applies to, each once. */
  readonly seen: Int32Array;
  /** Ids, each once, and what is added to their logits after the penalty. */
  readonly biased: Int32Array;
  readonly biases: Float32Array;
  /** Below 2^32. */
  readonly draw: number;
  /** Of how many of the likeliest tokens log-probabilities are wanted; -1: of none, nor the token's. */
  readonly likeliest: number;
}

export interface LikelyToken {
  readonly token: number;
  readonly logProbability: number;
}

export interface DrawnToken extends LikelyToken {
  /** Falling; equal ones by rising id. */
  readonly likeliest: readonly LikelyToken[];
}

/** New tokens of sequences whose earlier ones a cache holds. All but cuSeqlens [S]. */
export interface CachedSequences {
  /** [S + 1] over the new tokens. */
  readonly cuSeqlens: Int32Array;
  /** Whose state is the sequence's; each once. */
  readonly slots: Int32Array;
  /** The row of the cache that its first token stands in. Which rows are whose is the caller's to keep apart. */
  readonly starts: Int32Array;
  /** Tokens before the new ones; 0: it begins, whatever rows and state held. */
  readonly past: Int32Array;
  /** Tokens that it was begun with, in one call or several: frequencies of long sequences hang on them. */
  readonly lengths: Int32Array;
}
