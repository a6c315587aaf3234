import type { PipeloraError } from "../../common/errors.ts";
import type { Config } from "../../config/options.ts";
import type { MatrixValues } from "../cluster/pipeline.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import type { TrainingData } from "../planning/training-data.ts";
import type { Cut } from "../planning/workload.ts";
import type { RunFiles, StartingPoint } from "./checkpoints/run-files.ts";
import { copyState, type TrainerState } from "./checkpoints/trainer-state.ts";
import type { Reporter } from "./reporter.ts";

interface Parts {
  readonly config: Config;
  readonly setup: ModelSetup;
  readonly data: TrainingData;
  readonly files: RunFiles;
  readonly reporter: Reporter;
}

/** An adapter at a step's end, in memory: what the trained matrices and the optimizer held. */
export interface HeldState {
  readonly state: TrainerState;
  readonly values: readonly MatrixValues[];
}

/** When an adapter's steps began, by performance.now(), and after which step. */
export interface Beginning {
  readonly time: number;
  readonly step: number;
}

/** One adapter of a run, through all of its attempts: its settings, rows and folder, how its steps are cut, and how it ended. */
export class AdapterRun {
  /** Null: the run has no other. */
  readonly name: string | null;
  /** As given, with what depends on the number of steps worked out. */
  readonly config: Config;
  /** With the base that all adapters share. */
  readonly setup: ModelSetup;
  readonly data: TrainingData;
  readonly files: RunFiles;
  readonly reporter: Reporter;
  /** Once that is planned: the next attempt keeps to it. */
  cut: Cut | null = null;
  /** What its pairs began with, where that was taken out of the base: saved with every checkpoint. */
  initial: readonly MatrixValues[] = [];
  #held: HeldState | null = null;
  #began: Beginning | null = null;
  #done = false;
  #error: PipeloraError | null = null;

  constructor(name: string | null, { config, setup, data, files, reporter }: Parts) {
    this.name = name;
    this.config = config;
    this.setup = setup;
    this.data = data;
    this.files = files;
    this.reporter = reporter;
  }

  /** Whether it has steps left. */
  get live(): boolean {
    return !this.#done && this.#error === null;
  }

  /** What ended it; null: nothing did. */
  get error(): PipeloraError | null {
    return this.#error;
  }

  /** Of its first attempt that stepped: an attempt begins after this step now. */
  beginning(step: number): Beginning {
    this.#began ??= { time: performance.now(), step };
    return this.#began;
  }

  /** In place of what was held before, unless that is of a later step: what ranks tell may come after a save. Of a run that is elastic. */
  hold(held: HeldState): void {
    if (this.#held === null || held.state.globalStep >= this.#held.state.globalStep) this.#held = held;
  }

  get holds(): boolean {
    return this.#held !== null;
  }

  /** Where an attempt goes on: after the step that is held in memory, or else from the newest checkpoint. */
  async start(): Promise<StartingPoint> {
    if (this.#held === null) return this.files.start();
    const { state, values } = this.#held;
    return { state: copyState(state), values };
  }

  /** Makes a checkpoint of what is held, unless there is one of that step or a later one. Returns its step; null: there was nothing to do. */
  async saveHeld(): Promise<number | null> {
    if (this.#held === null || !this.live || this.#held.state.globalStep <= this.files.savedStep) return null;
    const { state, values } = this.#held;
    this.reporter.saved(await this.files.write([...values, ...this.initial], state, false), state.globalStep);
    return state.globalStep;
  }

  done(): void {
    this.#done = true;
  }

  /** It ends here; the others go on. */
  fail(error: PipeloraError): void {
    this.#error = error;
    if (this.name !== null) this.reporter.failed(error);
  }
}
