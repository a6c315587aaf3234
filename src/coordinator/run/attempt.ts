import { type PipeloraError, toPipeloraError } from "../../common/errors.ts";
import type { PlannedMembers } from "../assembly/plan-members.ts";
import type { Pipeline } from "../cluster/pipeline.ts";
import type { TrainerState } from "./checkpoints/trainer-state.ts";

/** Waits for its workers. */
export interface Gathering {
  readonly name: "gathering";
}

/** The workers are there and each has its part; nothing is loaded. */
export interface Planned {
  readonly name: "planned";
  readonly planned: PlannedMembers;
  /** Rows of the cache that replies are continued in; 0: none. */
  readonly cacheRows: number;
}

/** Every rank holds its shard, with LoRA values that are not the run's yet. */
export interface Prepared {
  readonly name: "prepared";
  readonly planned: PlannedMembers;
  readonly cacheRows: number;
  readonly pipeline: Pipeline;
}

/** The ranks hold each adapter's weights after its `globalStep` updates. */
export interface Stepping {
  readonly name: "stepping";
  readonly planned: PlannedMembers;
  readonly pipeline: Pipeline;
  /** Of each adapter, in the order in which they were planned. Changed in place by the steps. */
  readonly progress: readonly TrainerState[];
}

export interface Done {
  readonly name: "done";
}

/** Other workers are to go on: one was told to stop, or joined. What the last step made is safe. */
export interface Regroup {
  readonly name: "regroup";
  /** For people. */
  readonly reason: string;
}

export interface Failed {
  readonly name: "failed";
  /** The state that it failed in. */
  readonly during: Active["name"];
  readonly error: PipeloraError;
}

export type Active = Gathering | Planned | Prepared | Stepping;
export type Ended = Done | Regroup | Failed;

/** What is done in each state, which decides the next. */
export interface Stages {
  gathering(state: Gathering): Promise<Planned>;
  planned(state: Planned): Promise<Prepared>;
  prepared(state: Prepared): Promise<Stepping>;
  /** Ends by itself when a worker is lost or the run is interrupted, since it may have something to save. */
  stepping(state: Stepping): Promise<Done | Regroup>;
}

/**
 * One try at a run with one set of workers: gathering -> planned -> prepared -> stepping -> done, regroup or failed. A restart is an
 * attempt that ends and one that begins.
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

  /** From state to state until it has ended. Never rejects: what goes wrong in any state is the state `failed`. */
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

  /** Resolves when nothing of a failed attempt is under way any more. Its workers must have been sent away. */
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
