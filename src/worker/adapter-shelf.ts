import { PipeloraError } from "../common/errors.ts";
import type { Engine } from "../engine/index.ts";

interface Pair {
  A?: Float32Array;
  B?: Float32Array;
}

/**
 * Adapters that a rank holds in its host's memory, by number, each the values of some of the engine's LoRA pairs: rounds of one and the
 * other take turns in the engine. Number 0 is the base: no pair adds anything. A rank that was given no other number leaves the engine's
 * values as they are.
 */
export class AdapterShelf {
  readonly #engine: Engine;
  readonly #adapters = new Map<number, Map<string, Pair>>();
  /** Elements of B, by module. */
  readonly #sizes: ReadonlyMap<string, number>;
  /** Whose values each pair of the engine has; 0: none. */
  readonly #current = new Map<string, number>();

  constructor(engine: Engine, sizes: ReadonlyMap<string, number>) {
    this.#engine = engine;
    this.#sizes = sizes;
  }

  /** An adapter that put() gives values to; a rank may hold none of its pairs. In place of an earlier one of that number. */
  open(adapter: number): void {
    this.#adapters.set(adapter, new Map());
    for (const [module, owner] of this.#current) if (owner === adapter) this.#current.delete(module);
  }

  put(adapter: number, module: string, matrix: "A" | "B", values: Float32Array): void {
    const pairs = this.#adapters.get(adapter)!;
    pairs.set(module, { ...pairs.get(module), [matrix]: values });
  }

  /**
   * Queues what makes the engine compute with this adapter, behind what is queued so far. Error: PL_PROTOCOL_MISMATCH for a number that
   * was not given. The promise is that of the engine's.
   */
  use(adapter: number): Promise<void> {
    if (this.#adapters.size === 0 && adapter === 0) return Promise.resolve();
    const pairs = adapter === 0 ? new Map<string, Pair>() : this.#adapters.get(adapter);
    if (pairs === undefined)
      throw new PipeloraError("PL_PROTOCOL_MISMATCH", `a round is of adapter ${adapter}, which never came`);
    const queued: Promise<void>[] = [];
    for (const [module, size] of this.#sizes) {
      const pair = pairs.get(module);
      const owner = pair === undefined ? 0 : adapter;
      if (this.#current.get(module) === owner) continue;
      this.#current.set(module, owner);
      if (pair?.A !== undefined) queued.push(this.#engine.setLora(module, "A", "weight", pair.A));
      queued.push(this.#engine.setLora(module, "B", "weight", pair?.B ?? new Float32Array(size)));
    }
    return Promise.all(queued).then(() => {});
  }
}
