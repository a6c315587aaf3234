import { float32Of } from "../../../common/bytes.ts";
import type { BoundaryState__Output } from "../../../rpc/generated/pipelora/v1/BoundaryState.ts";
import { STATE_PARTS } from "../../../rpc/state-parts.ts";
import type { MatrixPartName, MatrixValues } from "../../cluster/pipeline.ts";
import type { AdapterRun } from "../adapter-run.ts";
import { copyState, type TrainerState } from "../checkpoints/trainer-state.ts";

/** An adapter of an attempt, with its number there. */
export interface Told {
  readonly adapter: Pick<AdapterRun, "hold">;
  /** How many matrices it trains. */
  readonly matrices: number;
}

interface Underway {
  readonly state: TrainerState;
  readonly values: Map<string, MatrixValues>;
}

/**
 * Collects trained values that ranks send at the end of a step, while they compute the next one. One collection runs at a time, so ranks and this
 * process never hold more than it and the last complete one. A step that ends meanwhile is not collected.
 */
export class BoundaryStates {
  readonly #told: readonly Told[];
  #round = -1;
  readonly #underway = new Map<number, Underway>();

  constructor(told: readonly Told[]) {
    this.#told = told;
  }

  /** Whether the round that begins now should be collected. */
  get wanted(): boolean {
    return this.#underway.size === 0;
  }

  /** Begins a collection. `states`: the trainer state that belongs to the values, by adapter. */
  begin(round: number, states: ReadonlyMap<number, TrainerState>): void {
    this.#round = round;
    for (const [number, state] of states) this.#underway.set(number, { state: copyState(state), values: new Map() });
  }

  /** Takes a rank's message. A late message of an abandoned round is dropped. */
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
