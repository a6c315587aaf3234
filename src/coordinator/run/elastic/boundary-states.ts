import { float32Of } from "../../../common/bytes.ts";
import type { BoundaryState__Output } from "../../../rpc/generated/pipelora/v1/BoundaryState.ts";
import { STATE_PARTS } from "../../../rpc/state-parts.ts";
import type { MatrixPartName, MatrixValues } from "../../cluster/pipeline.ts";
import type { AdapterRun } from "../adapter-run.ts";
import { copyState, type TrainerState } from "../checkpoints/trainer-state.ts";

/** An adapter of an attempt, by its number there. */
export interface Told {
  readonly adapter: Pick<AdapterRun, "hold">;
  /** Matrices that it trains. */
  readonly matrices: number;
}

interface Underway {
  readonly state: TrainerState;
  readonly values: Map<string, MatrixValues>;
}

/**
 * Gathers what the ranks tell of their trained values at a step's boundary, while they compute the next step. One boundary is under way at
 * a time, so neither a rank nor this process ever holds more than that and the last whole one; a step that begins meanwhile tells nothing.
 */
export class BoundaryStates {
  readonly #told: readonly Told[];
  #round = -1;
  readonly #underway = new Map<number, Underway>();

  constructor(told: readonly Told[]) {
    this.#told = told;
  }

  /** Whether the round that begins is to tell. */
  get wanted(): boolean {
    return this.#underway.size === 0;
  }

  /** The ranks were asked to. `states`: by adapter, those that their values belong to. */
  begin(round: number, states: ReadonlyMap<number, TrainerState>): void {
    this.#round = round;
    for (const [number, state] of states) this.#underway.set(number, { state: copyState(state), values: new Map() });
  }

  /** A message of some rank. What is late, of a round that was given up, is dropped. */
  take({ round, adapter: number, tensors }: BoundaryState__Output): void {
    const underway = this.#underway.get(number);
    if (round !== this.#round || underway === undefined) return;
    for (const { name, part, values } of tensors) {
      underway.values.set(`${name} ${part}`, { name, part: part as MatrixPartName, values: float32Of(values) });
    }
    const { adapter, matrices } = this.#told[number]!;
    if (underway.values.size < matrices * STATE_PARTS.length) return;
    this.#underway.delete(number);
    adapter.hold({ state: underway.state, values: [...underway.values.values()] });
  }
}
