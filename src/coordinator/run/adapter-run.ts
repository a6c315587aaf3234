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

/** An adapter's state after a step, held in memory: trained matrices and optimizer. */
export interface HeldState {
  readonly state: TrainerState;
  readonly values: readonly MatrixValues[];
}

/** When an adapter's steps began (performance.now()), and after which step. */
export interface Beginning {
  readonly time: number;
  readonly step: number;
}

/** One adapter of a run, through all attempts: its settings, rows, folder and cut, and how it ended. */
export class AdapterRun {
  /** Null: it is the run's only adapter. */
  readonly name: string | null;
  /** The configuration, with shares of the steps resolved to numbers. */
  readonly config: Config;
  /** The model, whose base all adapters share, with this adapter. */
  readonly setup: ModelSetup;
  readonly data: TrainingData;
  readonly files: RunFiles;
  readonly reporter: Reporter;
  /** The cut of the first plan. Later attempts keep it. Null: not planned yet. */
  cut: Cut | null = null;
  /** First values of pairs whose product was subtracted from the base. Every checkpoint contains them. */
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

  /** The error that ended it; null: none. */
  get error(): PipeloraError | null {
    return this.#error;
  }

  /** Notes that an attempt begins after this step. Returns when the first such attempt began. */
  beginning(step: number): Beginning {
    this.#began ??= { time: performance.now(), step };
    return this.#began;
  }

  /** Elastic runs: holds this state, unless a later one is already held (ranks' values may arrive after a save). */
  hold(held: HeldState): void {
    if (this.#held === null || held.state.globalStep >= this.#held.state.globalStep) this.#held = held;
  }

  get holds(): boolean {
    return this.#held !== null;
  }

  /** Where an attempt starts: from the state held in memory, or else from the newest checkpoint. */
  async start(): Promise<StartingPoint> {
    if (this.#held === null) return this.files.start();
    const { state, values } = this.#held;
    return { state: copyState(state), values };
  }

  /** Saves the held state as a checkpoint, unless there is one of that step or a later one. Returns the step; null: nothing was saved. */
  async saveHeld(): Promise<number | null> {
    if (this.#held === null || !this.live || this.#held.state.globalStep <= this.files.savedStep) return null;
    const { state, values } = this.#held;
    this.reporter.saved(await this.files.write([...values, ...this.initial], state, false), state.globalStep);
    return state.globalStep;
  }

  done(): void {
    this.#done = true;
  }

  /** Ends this adapter with an error. The others go on. */
  fail(error: PipeloraError): void {
    this.#error = error;
    if (this.name !== null) this.reporter.failed(error);
  }
}
