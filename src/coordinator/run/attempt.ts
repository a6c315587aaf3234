import { type PipeloraError, toPipeloraError } from "../../common/errors.ts";
import type { PlannedMembers } from "../assembly/plan-members.ts";
import type { Pipeline } from "../cluster/pipeline.ts";
import type { TrainerState } from "./checkpoints/trainer-state.ts";

/** Waits for its workers. */
export interface Gathering {
  readonly name: "gathering";
}

/** The workers have joined and each has its part of the plan. Nothing is loaded. */
export interface Planned {
  readonly name: "planned";
  readonly planned: PlannedMembers;
  /** Rows of the key/value cache for replies; 0: none. */
  readonly cacheRows: number;
}

/** Every rank has loaded its shard. Its LoRA values are not the run's yet. */
export interface Prepared {
  readonly name: "prepared";
  readonly planned: PlannedMembers;
  readonly cacheRows: number;
  readonly pipeline: Pipeline;
}

/** The ranks hold each adapter's weights after its `globalStep` updates, and steps run. */
export interface Stepping {
  readonly name: "stepping";
  readonly planned: PlannedMembers;
  readonly pipeline: Pipeline;
  /** The state of each adapter, in the plan's order. Steps change it in place. */
  readonly progress: readonly TrainerState[];
}

export interface Done {
  readonly name: "done";
}

/** The attempt ends because its workers change: one was told to stop, or another joined. The last step is saved or held. */
export interface Regroup {
  readonly name: "regroup";
  /** For people. */
  readonly reason: string;
}

export interface Failed {
  readonly name: "failed";
  /** The state in which it failed. */
  readonly during: Active["name"];
  readonly error: PipeloraError;
}

export type Active = Gathering | Planned | Prepared | Stepping;
export type Ended = Done | Regroup | Failed;

/** The work of each state. Its result is the next state. */
export interface Stages {
  gathering(state: Gathering): Promise<Planned>;
  planned(state: Planned): Promise<Prepared>;
  prepared(state: Prepared): Promise<Stepping>;
  /** Must end by itself when a worker is lost or the run is interrupted, because it may have something to save. */
  stepping(state: Stepping): Promise<Done | Regroup>;
}

/**
 * One try at a run with one set of workers. Its states: gathering -> planned -> prepared -> stepping -> done, regroup or failed. After a restart
 * there is a new attempt.
 */
export class Attempt {
  readonly #stages: Stages;
  /** Rejects when a worker is lost or the run is interrupted. */
  readonly #disturbed: Promise<never>;
  #state: Active | Ended = { name: "gathering" };
  #work: Promise<unknown> = Promise.resolve();

  constructor(stages: Stages, disturbed: Promise<never>) {
    this.#stages = stages;
    this.#disturbed = disturbed;
    disturbed.catch(() => {});
  }

  get state(): Active | Ended {
    return this.#state;
  }

  /** Runs until the attempt has ended. Never rejects: an error in any state leads to the state `failed`. */
  async run(): Promise<Ended> {
    for (;;) {
      const state = this.#state;
      if (isEnded(state)) return state;
      const next = await this.#next(state).catch(
        (thrown: unknown): Failed => ({ name: "failed", during: state.name, error: toPipeloraError(thrown) }),
      );
      this.#state = next;
    }
  }

  /** Resolves when nothing of a failed attempt is running any more. Its workers must have been sent away before. */
  async settled(): Promise<void> {
    await this.#work.catch(() => {});
  }

  #next(state: Active): Promise<Active | Ended> {
    switch (state.name) {
      case "gathering":
        return this.#undisturbed(this.#stages.gathering(state));
      case "planned":
        return this.#undisturbed(this.#stages.planned(state));
      case "prepared":
        return this.#undisturbed(this.#stages.prepared(state));
      case "stepping":
        return this.#stages.stepping(state);
    }
  }

  #undisturbed<T>(work: Promise<T>): Promise<T> {
    this.#work = work;
    return Promise.race([work, this.#disturbed]);
  }
}

function isEnded(state: Active | Ended): state is Ended {
  return state.name === "done" || state.name === "regroup" || state.name === "failed";
}
