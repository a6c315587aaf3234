import type { InputFit } from "../../cluster/pipeline.ts";
import { rankDistribution, type SharedInput } from "./rank-distribution.ts";

/**
 * Decides when enough rows have been seen, as in peft's EVA. An input is decomposed further until all components that its modules' present ranks
 * use have stopped changing. It is decomposed again if later ranks use more components.
 */
export class EvaSearch {
  readonly #inputs: readonly SharedInput[];
  readonly #budget: number;
  readonly #tau: number;
  readonly #explained = new Map<string, Float64Array>();
  readonly #stays = new Map<string, readonly boolean[]>();
  readonly #settled = new Set<string>();
  #ranks: ReadonlyMap<string, number>;

  /** `budget`: the sum of all ranks. `tau`: a component whose cosine with the one before is at least this has stopped changing. */
  constructor(inputs: readonly SharedInput[], { budget, tau }: { readonly budget: number; readonly tau: number }) {
    this.#inputs = inputs;
    this.#budget = budget;
    this.#tau = tau;
    this.#ranks = new Map(inputs.flatMap(({ modules, components }) => modules.map((module) => [module, components])));
  }

  /** The inputs to decompose further, each named by its first module. */
  wanted(): string[] {
    return this.#inputs.flatMap(({ modules, components }) => {
      const name = modules[0]!;
      const stays = this.#stays.get(name) ?? Array<boolean>(components).fill(false);
      if (stays.slice(0, this.#ranks.get(name)!).every(Boolean)) this.#settled.add(name);
      else this.#settled.delete(name);
      return this.#settled.has(name) ? [] : [name];
    });
  }

  /** Takes the results of a batch. An input with too few rows in it is absent. */
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

  /** The inputs for which no batch has had enough rows so far. */
  unheard(): string[] {
    return this.#inputs.flatMap(({ modules }) => (this.#explained.has(modules[0]!) ? [] : [modules[0]!]));
  }

  /** The rank of each module. */
  get ranks(): ReadonlyMap<string, number> {
    return this.#ranks;
  }
}
