import { join } from "node:path";
import { PipeloraError } from "../common/errors.ts";
import { type Config, withoutSecrets } from "../config/options.ts";
import { adapterPairs } from "../formats/adapter.ts";
import { writeTextAtomically } from "../formats/atomic-file.ts";
import {
  type CheckpointContext,
  listCheckpoints,
  newestCheckpoint,
  type ReadCheckpoint,
  readCheckpoint,
  rotateCheckpoints,
  STATE_FILE,
  saveAdapter,
  saveCheckpoint,
} from "./checkpoints.ts";
import { type LearningRateSettings, learningRate, warmupSteps } from "./learning-rate.ts";
import type { ModelSetup } from "./model-setup.ts";
import type { LoraValues, Pipeline } from "./pipeline.ts";
import { copyTokenizer } from "./tokenizer-files.ts";
import {
  initialState,
  parseState,
  serializeState,
  type TrainerState,
  type TrainerStateContext,
} from "./trainer-state.ts";

/** Where a run starts: its state, and LoRA values to hand out (null: ranks draw their own). */
export interface StartingPoint {
  readonly state: TrainerState;
  readonly values: readonly LoraValues[] | null;
}

/** A run's output folder: where it starts from, what it saves, what it leaves at the end. */
export class RunFiles {
  readonly outputDir: string;
  readonly rate: LearningRateSettings;
  readonly #config: Config;
  readonly #setup: ModelSetup;
  readonly #checkpoint: CheckpointContext;
  readonly #state: TrainerStateContext;
  /** The checkpoint that --resume-from-checkpoint chose. */
  readonly #origin: ReadCheckpoint | null;
  #saved = false;

  private constructor(
    config: Config,
    setup: ModelSetup,
    outputDir: string,
    state: TrainerStateContext,
    origin: ReadCheckpoint | null,
  ) {
    this.outputDir = outputDir;
    this.#config = config;
    this.#setup = setup;
    this.#state = state;
    this.#origin = origin;
    this.rate = {
      type: config.lr_scheduler_type,
      peak: config.learning_rate,
      warmupSteps: warmupSteps(config, state.maxSteps),
      totalSteps: state.maxSteps,
    };
    this.#checkpoint = {
      outputDir,
      lora: setup.lora!,
      baseModel: setup.name,
      modelDir: setup.dir,
      args: withoutSecrets(config),
    };
  }

  /**
   * Errors: PL_OUTPUT_UNWRITABLE if the folder holds another run's checkpoints and neither resuming nor overwriting was
   * asked for; PL_RESUME_INVALID if there is nothing whole to resume, or it belongs to another run.
   */
  static async open(
    config: Config,
    setup: ModelSetup,
    outputDir: string,
    fingerprint: string,
    maxSteps: number,
  ): Promise<RunFiles> {
    const origin = await resumePoint(config, setup, outputDir);
    if (origin !== null) parseState(origin.state, origin.path, fingerprint);
    const evalSteps =
      config.eval_steps ?? (config.eval_strategy === "steps" ? config.logging_steps : config.save_steps);
    const state: TrainerStateContext = {
      maxSteps,
      numTrainEpochs: Math.ceil(config.num_train_epochs),
      trainBatchSize: config.per_device_train_batch_size,
      loggingSteps: config.logging_steps,
      evalSteps,
      saveSteps: config.save_steps,
      fingerprint,
    };
    return new RunFiles(config, setup, outputDir, state, origin);
  }

  /** The newest of: what this run has saved, what it resumes, the adapter it starts from, nothing. */
  async start(): Promise<StartingPoint> {
    const checkpoint = this.#saved ? await newestCheckpoint(this.outputDir, this.#setup.lora!) : this.#origin;
    if (checkpoint !== null) {
      return {
        state: parseState(checkpoint.state, checkpoint.path, this.#state.fingerprint),
        values: checkpoint.values,
      };
    }
    return { state: initialState(), values: await adapterValues(this.#setup) };
  }

  /** Writes checkpoint-N and deletes what save_total_limit has no room for. Returns its path. */
  async save(pipeline: Pipeline, state: TrainerState, stopping: boolean): Promise<string> {
    const values = await pipeline.exportLora(
      this.#config.save_only_model ? ["weight"] : ["weight", "exp_avg", "exp_avg_sq"],
    );
    const scheduledSteps = state.globalStep - state.skippedSteps;
    const path = await saveCheckpoint(this.#checkpoint, {
      step: state.globalStep,
      scheduledSteps,
      state: serializeState(state, this.#state, stopping),
      learningRate: learningRate(this.rate, scheduledSteps),
      values,
    });
    this.#saved = true;
    const limit = this.#config.save_total_limit;
    if (limit !== null) await rotateCheckpoints(this.outputDir, limit);
    return path;
  }

  /** The final adapter, tokenizer and trainer_state.json in output_dir itself. */
  async finish(pipeline: Pipeline, state: TrainerState): Promise<void> {
    await saveAdapter(this.outputDir, this.#checkpoint, await pipeline.exportLora(["weight"]));
    await copyTokenizer(this.#setup.dir, this.outputDir);
    await writeTextAtomically(join(this.outputDir, STATE_FILE), serializeState(state, this.#state, true));
  }
}

async function resumePoint(config: Config, setup: ModelSetup, outputDir: string): Promise<ReadCheckpoint | null> {
  const asked = config.resume_from_checkpoint;
  if (typeof asked === "string") return readCheckpoint(asked, setup.lora!);
  const present = await listCheckpoints(outputDir);
  if (asked === true) {
    const newest = await newestCheckpoint(outputDir, setup.lora!);
    if (newest !== null) return newest;
    throw new PipeloraError(
      "PL_RESUME_INVALID",
      present.length === 0
        ? `${outputDir} holds no checkpoint`
        : `none of the ${present.length} checkpoints in ${outputDir} is whole`,
      { hint: "Name a checkpoint folder, or leave out --resume-from-checkpoint." },
    );
  }
  if (present.length > 0 && !config.overwrite_output_dir) {
    throw new PipeloraError(
      "PL_OUTPUT_UNWRITABLE",
      `${outputDir} holds ${present.at(-1)!.path.split("/").at(-1)} of an earlier run`,
      {
        hint: "Say --resume-from-checkpoint to continue it, --overwrite-output-dir to start anew, or name another folder.",
      },
    );
  }
  return null;
}

/** The values of the adapter that a run starts from; null without one. */
export async function adapterValues({ adapter, lora }: ModelSetup): Promise<LoraValues[] | null> {
  if (adapter === null) return null;
  const pair = adapterPairs(adapter, lora!.targets);
  const values: LoraValues[] = [];
  for (const target of lora!.targets) {
    const { a, b } = await pair(target);
    values.push({ module: target.name, matrix: "A", part: "weight", values: a });
    values.push({ module: target.name, matrix: "B", part: "weight", values: b });
  }
  return values;
}
