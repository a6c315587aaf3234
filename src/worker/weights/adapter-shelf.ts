import { PipeloraError } from "../../common/errors.ts";
import type { Engine } from "../../engine/index.ts";

type Values = ReadonlyMap<string, Float32Array>;

/**
 * Adapters that a rank holds in its host's memory, by number, each the values of some of the engine's LoRA pairs: rounds of one and the
 * other take turns in the engine. Number 0 is the base: no pair adds anything.
 */
export class AdapterShelf {
  readonly #engine: Engine;
  readonly #adapters = new Map<number, Map<string, Float32Array>>();
  /** Elements of B of each of the engine's pairs, by its name. */
  readonly #sizes: ReadonlyMap<string, number>;
  /** Whose values each pair of the engine has, by B's name; 0: none. */
  readonly #current = new Map<string, number>();

  constructor(engine: Engine, sizes: ReadonlyMap<string, number>) {
    this.#engine = engine;
    this.#sizes = sizes;
  }

  get empty(): boolean {
    return this.#adapters.size === 0;
  }

  /** An adapter that put() gives values to; a rank may hold none of its pairs. In place of an earlier one of that number. */
  open(adapter: number): void {
    this.#adapters.set(adapter, new Map());
    for (const [name, owner] of this.#current) if (owner === adapter) this.#current.delete(name);
  }

  put(adapter: number, name: string, values: Float32Array): void {
    this.#adapters.get(adapter)!.set(name, values);
  }

  /**
   * Queues what makes the engine compute with this adapter, behind what is queued so far. Error: PL_PROTOCOL_MISMATCH for a number that
   * was not given. The promise is that of the engine's.
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
