import { Philox } from "../common/philox.ts";
import type { DeviceTensor, Engine, SamplingSettings } from "../engine/index.ts";

/** What a request for a reply says of how its tokens are chosen. */
export interface ReplySampling extends SamplingSettings {
  readonly doSample: boolean;
  readonly seed: number;
}

/**
 * Chooses a reply's tokens one after the other, on the device that holds the logits. `prompt`: tokens that the repetition
 * penalty applies to beside those chosen. The same seed gives the same draws.
 */
export class Sampler {
  readonly #engine: Engine;
  readonly #settings: SamplingSettings;
  readonly #random: Philox;
  readonly #known = new Set<number>();
  #seen: Int32Array<ArrayBuffer> = new Int32Array(0);

  constructor(engine: Engine, { doSample, seed, ...settings }: ReplySampling, prompt: readonly number[]) {
    this.#engine = engine;
    // Greedy: the likeliest token alone is left. The penalty still applies.
    this.#settings = doSample ? settings : { ...settings, temperature: 1, topK: 1, topP: 1 };
    this.#random = new Philox(seed, Math.floor(seed / 2 ** 32));
    for (const token of prompt) this.#add(token);
  }

  /** The token of a round, counted from 0; logits float32 [1, V], which may change. Errors: Engine.sample's. */
  async choose(logits: DeviceTensor, round: number): Promise<number> {
    const words = new Uint32Array(4);
    this.#random.block(round, 0, 0, 0, words);
    const token = await this.#engine.sample(logits, this.#settings, this.#seen.subarray(0, this.#count()), words[0]!);
    this.#add(token);
    return token;
  }

  #count(): number {
    return this.#settings.repetitionPenalty === 1 ? 0 : this.#known.size;
  }

  #add(token: number): void {
    if (this.#settings.repetitionPenalty === 1 || this.#known.has(token)) return;
    const at = this.#known.size;
    if (at === this.#seen.length) {
      const longer = new Int32Array(Math.max(256, 2 * at));
      longer.set(this.#seen);
      this.#seen = longer;
    }
    this.#seen[at] = token;
    this.#known.add(token);
  }
}
