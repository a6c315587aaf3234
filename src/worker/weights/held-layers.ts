import type { FrozenLayers } from "../../engine/index.ts";
import type { Taken } from "./base-inits.ts";

/** What an engine leaves behind. */
export interface LeftLayers {
  /** Names the model, how its weights are held, and what was taken out of them: only an engine of the same may have them. */
  readonly base: string;
  readonly frozen: FrozenLayers;
  /** By adapter: pairs that were made of weights of these layers. */
  readonly made: readonly ReadonlyMap<string, Taken>[];
}

/**
 * The frozen weights that this process holds while it has no engine: between two plans of a run, whose sessions come and go. Owned by the
 * program. A shard is never held twice: what lies here is taken by the next engine, or freed before that reads anything.
 */
export class HeldLayers {
  #left: LeftLayers | null = null;

  put(left: LeftLayers): void {
    this.free();
    this.#left = left;
  }

  /** What an engine of this base may take over; whatever else is held is freed. */
  take(base: string): LeftLayers | null {
    const left = this.#left;
    this.#left = null;
    if (left === null || left.base === base) return left;
    left.frozen.free();
    return null;
  }

  free(): void {
    this.#left?.frozen.free();
    this.#left = null;
  }
}
