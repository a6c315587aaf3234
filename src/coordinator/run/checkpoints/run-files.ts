import { rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { PipeloraError } from "../../../common/errors.ts";
import type { Config } from "../../../config/options.ts";
import { writeTextAtomically } from "../../../formats/atomic-file.ts";
import { filesOf, hashFiles, listCheckpoints } from "../../../formats/checkpoint-folders.ts";
import { readTensor } from "../../../formats/safetensors.ts";
import { copyTokenizer } from "../../../formats/tokenizer/copy.ts";
import { STATE_PARTS } from "../../../rpc/state-parts.ts";
import { adapterValues } from "../../assembly/adapter-values.ts";
import type { NodeFolders, NodeSave } from "../../cluster/node-folders.ts";
import type { MatrixPartName, MatrixValues, PipelineAdapter } from "../../cluster/pipeline.ts";
import type { ModelSetup } from "../../planning/model-setup.ts";
import { type LearningRateSettings, warmupSteps } from "../steps/learning-rate.ts";
import { type GroupSettings, groupRates, type ParamGroups, paramGroups } from "../steps/param-groups.ts";
import { CheckpointStore } from "./checkpoint-store.ts";
import {
  type CheckpointContext,
  firstWhole,
  type ReadCheckpoint,
  readCheckpoint,
  readWeights,
  STATE_FILE,
  saveAdapter,
  saveCheckpoint,
} from "./checkpoints.ts";
import { checkOrigin, earlierRun, namedFolder, resumePoint, stepOf, upTo } from "./resume-point.ts";
import type { DecisiveSettings, FreeSettings } from "./run-identity.ts";
import {
  initialState,
  parseState,
  serializeState,
  type TrainerState,
  type TrainerStateContext,
} from "./trainer-state.ts";

/** The settings that decide what is saved, when and where, and what a run may resume from. */
export type FileSettings = DecisiveSettings &
  FreeSettings &
  GroupSettings &
  Pick<
    Config,
    | "save_total_limit"
    | "save_only_model"
    | "save_failure"
    | "save_on_each_node"
    | "listen"
    | "resume_from_checkpoint"
    | "overwrite_output_dir"
    | "logging_steps"
    | "eval_strategy"
    | "eval_steps"
    | "save_steps"
    | "num_train_epochs"
    | "load_best_model_at_end"
    | "early_stopping_patience"
    | "early_stopping_threshold"
  >;

/** What the Trainer's state has where nothing is evaluated by steps. */
const UNASKED_EVAL_STEPS = 500;

/** The identity of the run that owns an output folder. */
export interface RunIdentity {
  readonly outputDir: string;
  readonly fingerprint: string;
  readonly maxSteps: number;
  /** Epochs that these steps begin. */
  readonly epochs: number;
  /** The run's settings, for training_args.json. */
  readonly args: Readonly<Record<string, unknown>>;
}

/** Where a run starts: its state, and the values to send to ranks. Null: ranks draw their own. */
export interface StartingPoint {
  readonly state: TrainerState;
  readonly values: readonly MatrixValues[] | null;
}

/** An allowance for configurations, state and a tokenizer. */
const SMALL_FILES_BYTES = 1 << 20;

/** A run's output folder: finds where the run starts, saves checkpoints, and writes the final adapter. */
export class RunFiles {
  readonly outputDir: string;
  readonly rate: LearningRateSettings;
  readonly groups: ParamGroups;
  readonly #settings: FileSettings;
  readonly #setup: ModelSetup;
  readonly #checkpoint: CheckpointContext;
  readonly #state: TrainerStateContext;
  /** The checkpoint that --resume-from-checkpoint chose. */
  #origin: ReadCheckpoint | null;
  readonly #store: CheckpointStore;
  /** The step of the last checkpoint that this run wrote; -1: none. */
  #savedStep = -1;
  readonly #warn: (text: string) => void;
  /** The current attempt's nodes that save too (save_on_each_node). */
  #nodes: NodeFolders | null = null;
  #looked = false;
  /** The last save that every node has, or has reported as failed. */
  #sentToNodes: string | null = null;

  private constructor(
    settings: FileSettings,
    setup: ModelSetup,
    run: RunIdentity,
    found: {
      readonly origin: ReadCheckpoint | null;
      readonly store: CheckpointStore;
      readonly warn: (text: string) => void;
    },
  ) {
    this.#store = found.store;
    this.#warn = found.warn;
    this.#origin = found.origin;
    this.outputDir = run.outputDir;
    this.#settings = settings;
    this.#setup = setup;
    const { eval_steps, eval_strategy, logging_steps, save_steps, early_stopping_patience: patience } = settings;
    this.#state = {
      maxSteps: run.maxSteps,
      numTrainEpochs: run.epochs,
      trainBatchSize: settings.per_device_train_batch_size,
      loggingSteps: logging_steps,
      evalSteps: eval_steps ?? (eval_strategy === "steps" ? logging_steps : UNASKED_EVAL_STEPS),
      saveSteps: save_steps,
      earlyStopping: patience === null ? null : { patience, threshold: settings.early_stopping_threshold },
      fingerprint: run.fingerprint,
    };
    this.rate = {
      type: settings.lr_scheduler_type,
      kwargs: settings.lr_scheduler_kwargs,
      peak: settings.learning_rate,
      warmupSteps: warmupSteps(settings, run.maxSteps),
      totalSteps: run.maxSteps,
    };
    this.groups = paramGroups(setup.lora!.matrices, settings);
    this.#checkpoint = {
      outputDir: run.outputDir,
      lora: setup.lora!,
      bases: setup.lora!.bases.map(({ name, tensor }) => {
        const location = setup.checkpoint!.locate(tensor);
        return { name, dtype: location.dtype, shape: location.shape, data: () => readTensor(location) };
      }),
      baseModel: setup.name,
      modelDir: setup.dir,
      args: run.args,
    };
  }

  /**
   * Opens the folder. Errors: PL_OUTPUT_UNWRITABLE if it holds another run's checkpoints and the user asked neither to resume nor to overwrite;
   * PL_RESUME_INVALID if there is no whole checkpoint to resume, or it belongs to another run.
   */
  static async open(
    settings: FileSettings,
    setup: ModelSetup,
    run: RunIdentity,
    warn: (text: string) => void,
  ): Promise<RunFiles> {
    const { outputDir, fingerprint } = run;
    const store = new CheckpointStore(outputDir, settings.save_total_limit);
    await store.clear();
    const origin = await resumePoint(settings, setup, outputDir, warn);
    if (origin !== null) store.adopt(await upTo(outputDir, origin.path));
    if (origin !== null) await checkOrigin(settings, origin, fingerprint, warn);
    return new RunFiles(settings, setup, run, { origin, store, warn });
  }

  /**
   * From now on every save goes to these nodes too. The first time, a run that resumes takes the newest whole checkpoint of any node if it is
   * newer than the coordinator's. Returns a sentence for the user, or null.
   * Errors: PL_RESUME_INVALID if no node has one; PL_OUTPUT_UNWRITABLE if a node holds an earlier run's checkpoints and the user asked neither to
   * resume nor to overwrite.
   */
  async attach(nodes: NodeFolders): Promise<string | null> {
    this.#nodes = nodes;
    if (this.#hasSaved || this.#looked) return null;
    this.#looked = true;
    const { resume_from_checkpoint: asked, overwrite_output_dir: overwrite } = this.#settings;
    if (namedFolder(asked) !== null || overwrite) return null;
    const found = await nodes.checkpoints();
    if (asked === null || asked === false) {
      const [newest] = found;
      if (newest !== undefined) throw earlierRun(`node "${newest.node}": ${newest.dir}`, newest.step);
      return null;
    }
    const own = this.#origin === null ? -1 : stepOf(this.#origin);
    const problems: string[] = [];
    for (const candidate of found.filter(({ step }) => step > own)) {
      const where = `checkpoint-${candidate.step} of node "${candidate.node}"`;
      const path = await nodes.fetch(candidate);
      const read = await readCheckpoint(path, this.#setup.lora!).catch((error: Error) => {
        problems.push(`${where}: ${error.message}`);
        return null;
      });
      if (read === null) {
        await rm(path, { recursive: true, force: true });
        continue;
      }
      await checkOrigin(this.#settings, read, this.#state.fingerprint, this.#warn);
      this.#origin = read;
      this.#store.adopt(await upTo(this.outputDir, read.path));
      return `resuming from ${where} (${candidate.dir}), the newest that is whole on any node`;
    }
    if (this.#origin !== null)
      return `resuming from the coordinator's own ${this.#origin.path}, the newest on any node`;
    const fresh = found.length === 0 && (await listCheckpoints(this.outputDir)).length === 0;
    if (asked === "auto" && fresh) return null;
    throw new PipeloraError(
      "PL_RESUME_INVALID",
      `neither ${this.outputDir} nor any node's folder holds a whole checkpoint ${problems.join("; ")}`.trim(),
      { hint: "Name a checkpoint folder, or leave out --resume-from-checkpoint." },
    );
  }

  /** Renames checkpoints that this run does not resume, so that no later resume takes them for this run's. */
  async setAsideOthers(): Promise<void> {
    const moved = await this.#store.setAsideOthers();
    const what = "set aside checkpoints that this run does not go on from";
    if (moved.length > 0) this.#warn(`${what}: ${moved.join(", ")}`);
    const upTo = this.#origin === null ? null : stepOf(this.#origin);
    for (const { node, moved: there } of (await this.#nodes?.setAsideAllBut(this.#store.names, upTo)) ?? []) {
      if (there.length > 0) this.#warn(`${what} on node "${node}": ${there.join(", ")}`);
    }
  }

  /** Whether the run starts from step 0: it neither resumes nor has saved. */
  get begins(): boolean {
    return this.#origin === null && !this.#hasSaved;
  }

  get savedStep(): number {
    return this.#savedStep;
  }

  get #hasSaved(): boolean {
    return this.#savedStep >= 0;
  }

  /** The parts of each matrix that a checkpoint contains. */
  get savedParts(): readonly MatrixPartName[] {
    return this.#settings.save_only_model ? ["weight", "initial"] : [...STATE_PARTS, "initial"];
  }

  /** Forgets the nodes of the attempt that ended. */
  detach(): void {
    this.#nodes = null;
  }

  /** An upper bound for the size of a checkpoint in bytes: the adapter and two moments in float32, and small files. */
  get checkpointBytes(): number {
    const parts = this.#settings.save_only_model ? 1 : 3;
    return parts * 4 * this.#setup.lora!.trainable + SMALL_FILES_BYTES;
  }

  /** Where an attempt starts: this run's last checkpoint, or the one that it resumes, or the adapter given, or nothing. */
  async start(): Promise<StartingPoint> {
    const own = this.#hasSaved && !this.#settings.save_only_model ? this.#store.newestFirst : [];
    const checkpoint =
      (await firstWhole(own, this.#setup.lora!, (problem) => this.#warn(`passed over: ${problem}`))) ?? this.#origin;
    if (this.#hasSaved && checkpoint === null) {
      this.#warn("no checkpoint of this run can be gone on from; it starts again at step 1");
    }
    if (checkpoint !== null) {
      await this.#bringToNodes(checkpoint);
      return {
        state: parseState(checkpoint.state, checkpoint.path, this.#state.fingerprint),
        values: checkpoint.values,
      };
    }
    return { state: initialState(), values: await adapterValues(this.#setup) };
  }

  /**
   * Writes checkpoint-N, here and on every node that saves too, and deletes checkpoints beyond save_total_limit. If this evaluation is the best,
   * `state` then names the checkpoint. `given`: everything in `savedParts`.
   * Errors: PL_OUTPUT_UNWRITABLE; for a node's folder only with --save-failure fail.
   */
  async write(given: readonly MatrixValues[], state: TrainerState, stopping: boolean): Promise<Saved> {
    const values = given.filter(({ part }) => this.savedParts.includes(part));
    assertFinite(values, state.globalStep);
    const best = state.bestGlobalStep === null ? null : join(this.outputDir, `checkpoint-${state.bestGlobalStep}`);
    if (best !== null && (state.bestGlobalStep === state.globalStep || this.#store.owns(best)))
      state.bestModelCheckpoint = best;
    const scheduledSteps = state.globalStep - state.skippedSteps;
    const path = await saveCheckpoint(this.#checkpoint, {
      step: state.globalStep,
      scheduledSteps,
      state: serializeState(state, this.#state, stopping),
      learningRates: groupRates(this.rate, this.groups.groups, scheduledSteps).map(({ learningRate }) =>
        Number(learningRate),
      ),
      values,
    });
    this.#savedStep = state.globalStep;
    const dropped = await this.#store.saved(path, state.bestModelCheckpoint);
    return this.#toNodes(path, `checkpoint-${state.globalStep}`, await filesOf(path), { dropped });
  }

  /**
   * Writes the final adapter, the tokenizer and trainer_state.json into output_dir itself, here and on every node that saves too. With
   * load_best_model_at_end the adapter is the best checkpoint's. Errors: PL_RESUME_INVALID if the best checkpoint is no longer whole.
   */
  async finish(pipeline: PipelineAdapter, state: TrainerState): Promise<Finished> {
    const best = this.#settings.load_best_model_at_end ? state.bestModelCheckpoint : null;
    const values =
      best === null ? await pipeline.exportMatrices(["weight", "initial"]) : await readWeights(best, this.#setup.lora!);
    assertFinite(values, state.globalStep);
    const adapter = await saveAdapter(this.outputDir, this.#checkpoint, values);
    const tokenizer = await copyTokenizer(this.#setup.dir, this.outputDir);
    await writeTextAtomically(join(this.outputDir, STATE_FILE), serializeState(state, this.#state, true));
    const dropped = best === null ? [] : await this.#store.finished(best);
    return {
      best,
      ...(await this.#toNodes(this.outputDir, "final", [...adapter, ...tokenizer, STATE_FILE], { dropped })),
    };
  }

  /** Copies the checkpoint that the run resumes to nodes that lack it: a fault may have cut its save short. */
  async #bringToNodes(checkpoint: ReadCheckpoint): Promise<void> {
    const { path } = checkpoint;
    // A node hashes its checkpoints to answer this: it is not asked if the save succeeded.
    if (this.#nodes === null || path === this.#sentToNodes || !this.#store.newestFirst.includes(path)) return;
    const names = await filesOf(path);
    const lacking = await this.#nodes.lacking(stepOf(checkpoint), await hashFiles(path, names));
    const save = basename(path);
    const { nodes } = await this.#toNodes(path, save, names, { targets: lacking });
    for (const node of nodes) if (node.error !== null) this.#warn(describeFailure(save, node));
  }

  /** Sends a save to nodes. `dropped`: checkpoints that nodes delete. `targets` null: no node saves. */
  async #toNodes(
    path: string,
    save: string,
    names: readonly string[],
    { dropped = [], targets = this.#nodes }: { dropped?: readonly string[]; targets?: NodeFolders | null },
  ): Promise<Saved> {
    if (targets === null) return { path, nodes: [], files: {} };
    const { nodes, files } = await targets.save(save, names, dropped);
    this.#sentToNodes = path;
    const failed = nodes.filter(({ error }) => error !== null);
    if (failed.length > 0 && this.#settings.save_failure === "fail") {
      throw new PipeloraError("PL_OUTPUT_UNWRITABLE", failed.map((node) => describeFailure(save, node)).join("; "), {
        hint: "Give these nodes space, or go on without them with --save-failure warn.",
      });
    }
    return { path, nodes, files: Object.fromEntries(files.map(({ name, sha256 }) => [name, sha256])) };
  }
}

/** The result of a save. */
export interface Saved {
  /** The coordinator's folder. */
  readonly path: string;
  /** With save_on_each_node: the result on each node. */
  readonly nodes: readonly NodeSave[];
  /** SHA-256 of each file. It is the same on all nodes. */
  readonly files: Readonly<Record<string, string>>;
}

export interface Finished extends Saved {
  /** The checkpoint that the final adapter comes from; null: the last step. */
  readonly best: string | null;
}

export function describeFailure(save: string, { node, error }: NodeSave): string {
  return `node "${node}" did not save ${save}: ${error!.message}`;
}

/** Checks the values after the last update, because no later loss would show that they are not finite. Errors: PL_LOSS_NOT_FINITE. */
export function assertFinite(values: readonly MatrixValues[], step: number): void {
  for (const { name, part, values: numbers } of values) {
    if (numbers.every(Number.isFinite)) continue;
    throw new PipeloraError("PL_LOSS_NOT_FINITE", `after step ${step}, ${part} of ${name} is not finite`, {
      hint: "Lower the learning rate; nothing of this step was saved.",
    });
  }
}
