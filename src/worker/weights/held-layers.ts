import type { FrozenLayers } from "../../engine/index.ts";
import type { Taken } from "./base-inits.ts";

/** What a closed engine leaves behind. */
export interface LeftLayers {
  /** Names the model, how its weights are held, and what was subtracted from them. Only an engine with the same name may take them. */
  readonly base: string;
  readonly frozen: FrozenLayers;
  /** By adapter: pairs that were made from weights of these layers. */
  readonly made: readonly ReadonlyMap<string, Taken>[];
}

/**
 * The frozen weights that this process holds between two engines of a run. The program owns them. No shard is held twice: the next engine
 * takes what is here, or it is freed before that engine reads anything.
 */
export class HeldLayers {
  #left: LeftLayers | null = null;

  put(left: LeftLayers): void {
    this.free();
    this.#left = left;
  }

  /** The layers that an engine of this base may take over. Anything else is freed. */
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
