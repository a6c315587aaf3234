import type { InputFit } from "../../cluster/pipeline.ts";
import { rankDistribution, type SharedInput } from "./rank-distribution.ts";

/**
 * When enough rows have been seen, as peft's EVA decides it: an input is decomposed further until every component that its modules get by
 * the ranks so far has stayed what it was, and again if later ranks need more of them.
 */
export class EvaSearch {
  readonly #inputs: readonly SharedInput[];
  readonly #budget: number;
  readonly #tau: number;
  readonly #explained = new Map<string, Float64Array>();
  readonly #stays = new Map<string, readonly boolean[]>();
  readonly #settled = new Set<string>();
  #ranks: ReadonlyMap<string, number>;

  /** `budget`: ranks of all modules together; `tau`: the least cosine of a component that stayed. */
  constructor(inputs: readonly SharedInput[], { budget, tau }: { readonly budget: number; readonly tau: number }) {
    this.#inputs = inputs;
    this.#budget = budget;
    this.#tau = tau;
    this.#ranks = new Map(inputs.flatMap(({ modules, components }) => modules.map((module) => [module, components])));
  }

  /** Inputs, by their first modules, to be decomposed further; empty: none. */
  wanted(): string[] {
    return this.#inputs.flatMap(({ modules, components }) => {
      const name = modules[0]!;
      const stays = this.#stays.get(name) ?? Array<boolean>(components).fill(false);
      if (stays.slice(0, this.#ranks.get(name)!).every(Boolean)) this.#settled.add(name);
      else this.#settled.delete(name);
      return this.#settled.has(name) ? [] : [name];
    });
  }

  /** What a batch gave of those that were wanted; an input of which it had too few rows is left out. */
  heard(fits: ReadonlyMap<string, InputFit>): void {
    for (const [name, { explained, similar }] of fits) {
      this.#explained.set(name, explained);
      if (similar.length > 0)
        this.#stays.set(
          name,
          Array.from(similar, (cosine) => cosine >= this.#tau),
        );
    }
    if (this.#explained.size === this.#inputs.length) {
      this.#ranks = rankDistribution(this.#inputs, this.#explained, this.#budget);
    }
  }

  /** Inputs of which no batch had rows enough so far. */
  unheard(): string[] {
    return this.#inputs.flatMap(({ modules }) => (this.#explained.has(modules[0]!) ? [] : [modules[0]!]));
  }

  /** By module. */
  get ranks(): ReadonlyMap<string, number> {
    return this.#ranks;
  }
}
