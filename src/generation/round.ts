import type { PipeloraError } from "../common/errors.ts";

/** How the next token of a sequence is drawn from its logits: see Engine.sample. */
export interface DrawSettings {
  readonly temperature: number;
  readonly topP: number;
  /** 0: all; 1: greedy. */
  readonly topK: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
}

export interface DrawRequest {
  readonly settings: DrawSettings;
  /** Ids that the repetition penalty applies to, each once. */
  readonly seen: Int32Array;
  /** Ids, each once, and what is added to their logits. */
  readonly biased: Int32Array;
  readonly biases: Float32Array;
  /** Below 2^32: where in the distribution the token lies. */
  readonly draw: number;
  /** Of how many of the likeliest tokens log-probabilities are wanted; -1: of none, nor the token's own. */
  readonly likeliest: number;
}

/** A sequence's part in a round. */
export interface RoundEntry {
  readonly tokens: readonly number[];
  /** Whose state is the sequence's. */
  readonly slot: number;
  /** The row of the cache that its first token stands in. */
  readonly start: number;
  /** Tokens before the new ones. */
  readonly past: number;
  /** Tokens that it was begun with. */
  readonly length: number;
  /** null: more of its prompt is still to come. */
  readonly draw: DrawRequest | null;
}

/** New tokens of some sequences, which go through the model in one pass. */
export interface Round {
  /** Number of the adapter that all of them use; 0: the base, or the only adapter. */
  readonly adapter: number;
  readonly entries: readonly RoundEntry[];
}

export interface LikelyToken {
  readonly id: number;
  /** Natural logarithm under the model's own softmax: before penalties, temperature and truncation (top-k, top-p, min-p). */
  readonly logProbability: number;
}

export interface DrawnToken extends LikelyToken {
  /** The likeliest tokens, falling. */
  readonly likeliest: readonly LikelyToken[];
  /** Why there is no token; null: there is one. */
  readonly failure: PipeloraError | null;
}

/** Runs rounds: a pipeline of workers, with the cache that rows and slots refer to. */
export interface RoundRunner {
  /** Returns the tokens of the entries that draw one, in order. Several rounds may be under way; their order is kept. */
  infer(round: Round): Promise<DrawnToken[]>;
}
