import type { PipeloraError } from "../../common/errors.ts";
import type { Config } from "../../config/options.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import type { TrainingData } from "../planning/training-data.ts";
import type { Cut } from "../planning/workload.ts";
import type { RunFiles } from "./checkpoints/run-files.ts";
import type { Reporter } from "./reporter.ts";

interface Parts {
  readonly config: Config;
  readonly setup: ModelSetup;
  readonly data: TrainingData;
  readonly files: RunFiles;
  readonly reporter: Reporter;
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

  done(): void {
    this.#done = true;
  }

  /** It ends here; the others go on. */
  fail(error: PipeloraError): void {
    this.#error = error;
    if (this.name !== null) this.reporter.failed(error);
  }
}
