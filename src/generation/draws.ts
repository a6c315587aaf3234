import { Philox } from "../common/philox.ts";
import type { DrawRequest, DrawSettings } from "./round.ts";

/** How a sequence's tokens are chosen. Names and order are transformers'; frequency and presence penalties OpenAI's. */
export interface TokenChoice extends DrawSettings {
  /** Whether tokens are sampled. Greedy otherwise, but penalties and biases still apply. */
  readonly doSample: boolean;
  /** The same seed gives the same tokens, whatever other sequences run. */
  readonly seed: number;
  /** Frequency penalty: subtracted from a token's logit for each time it was chosen. Presence penalty: subtracted once if it was. */
  readonly frequencyPenalty: number;
  readonly presencePenalty: number;
  /** Added to logits, by id. */
  readonly logitBias: ReadonlyMap<number, number>;
  /** For how many of the most likely tokens log-probabilities are wanted; -1: for none, not even the chosen token. */
  readonly likeliest: number;
}

export const GREEDY: TokenChoice = {
  doSample: false,
  seed: 0,
  temperature: 1,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  logitBias: new Map(),
  likeliest: -1,
};

const NO_IDS = new Int32Array(0);
const NO_BIASES = new Float32Array(0);

/** The sampling request for each token of a sequence in turn. */
export class Draws {
  readonly #choice: TokenChoice;
  readonly #settings: DrawSettings;
  readonly #random: Philox;
  /** Of prompt and reply, where a repetition penalty needs them. */
  readonly #seen = new Set<number>();
  /** How often each token was chosen, where frequency or presence count. */
  readonly #counts = new Map<number, number>();
  #chosen = 0;

  constructor(choice: TokenChoice, prompt: readonly number[]) {
    const { temperature, topP, topK, minP, repetitionPenalty, seed } = choice;
    this.#choice = choice;
    // Greedy: the likeliest token alone is left.
    this.#settings = choice.doSample
      ? { temperature, topP, topK, minP, repetitionPenalty }
      : { temperature: 1, topP: 1, topK: 1, minP: 0, repetitionPenalty };
    this.#random = new Philox(seed, Math.floor(seed / 2 ** 32));
    if (repetitionPenalty !== 1) for (const token of prompt) this.#seen.add(token);
  }

  next(): DrawRequest {
    const words = new Uint32Array(4);
    this.#random.block(this.#chosen, 0, 0, 0, words);
    const biases = this.#biases();
    return {
      settings: this.#settings,
      seen: this.#seen.size === 0 ? NO_IDS : Int32Array.from(this.#seen),
      biased: biases === null ? NO_IDS : Int32Array.from(biases.keys()),
      biases: biases === null ? NO_BIASES : Float32Array.from(biases.values()),
      draw: words[0]!,
      likeliest: this.#choice.likeliest,
    };
  }

  add(token: number): void {
    const { repetitionPenalty, frequencyPenalty, presencePenalty } = this.#choice;
    this.#chosen++;
    if (repetitionPenalty !== 1) this.#seen.add(token);
    if (frequencyPenalty !== 0 || presencePenalty !== 0) this.#counts.set(token, (this.#counts.get(token) ?? 0) + 1);
  }

  #biases(): Map<number, number> | null {
    const { logitBias, frequencyPenalty, presencePenalty } = this.#choice;
    if (logitBias.size === 0 && this.#counts.size === 0) return null;
    const biases = new Map(logitBias);
    for (const [token, count] of this.#counts) {
      biases.set(token, (biases.get(token) ?? 0) - frequencyPenalty * count - presencePenalty);
    }
    return biases;
  }
}
