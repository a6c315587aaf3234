import { PipeloraError } from "../../common/errors.ts";
import type { Engine } from "../../engine/index.ts";

type Values = ReadonlyMap<string, Float32Array>;

/**
 * Adapters that a rank holds in its host's memory, by number. Each has values for some of the engine's LoRA pairs, and is copied into the engine
 * for its rounds. Number 0 is the base: all pairs are zero.
 */
export class AdapterShelf {
  readonly #engine: Engine;
  readonly #adapters = new Map<number, Map<string, Float32Array>>();
  /** Elements of B of each of the engine's pairs, by its name. */
  readonly #sizes: ReadonlyMap<string, number>;
  /** The adapter whose values each pair of the engine has, by B's name; 0: none. */
  readonly #current = new Map<string, number>();

  constructor(engine: Engine, sizes: ReadonlyMap<string, number>) {
    this.#engine = engine;
    this.#sizes = sizes;
  }

  get empty(): boolean {
    return this.#adapters.size === 0;
  }

  /** Begins an adapter, whose values put() adds. It replaces an earlier one with the same number. A rank may hold none of its pairs. */
  open(adapter: number): void {
    this.#adapters.set(adapter, new Map());
    for (const [name, owner] of this.#current) if (owner === adapter) this.#current.delete(name);
  }

  put(adapter: number, name: string, values: Float32Array): void {
    this.#adapters.get(adapter)!.set(name, values);
  }

  /**
   * Queues on the engine what makes it compute with this adapter from here on. Resolves when the engine has done that. Errors:
   * PL_PROTOCOL_MISMATCH for an unknown number; those of the engine.
   */
  use(adapter: number): Promise<void> {
    const values: Values | undefined = adapter === 0 ? new Map() : this.#adapters.get(adapter);
    if (values === undefined)
      throw new PipeloraError("PL_PROTOCOL_MISMATCH", `a round is of adapter ${adapter}, which never came`);
    const queued: Promise<void>[] = [];
    for (const [name, size] of this.#sizes) {
      const b = values.get(name);
      const owner = b === undefined ? 0 : adapter;
      if (this.#current.get(name) === owner) continue;
      this.#current.set(name, owner);
      const pairName = name.replace(/_B(?=\.weight$|$)/, "_A");
      const a = values.get(pairName);
      if (a !== undefined) queued.push(this.#engine.setMatrix(pairName, "weight", a));
      queued.push(this.#engine.setMatrix(name, "weight", b ?? new Float32Array(size)));
    }
    return Promise.all(queued).then(() => {});
  }
}
