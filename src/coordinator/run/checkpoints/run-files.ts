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

/** What is saved when and where, and what a run may go on from. */
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

/** Which run its folder belongs to. */
/** What the Trainer's state has where nothing is evaluated by steps. */
const UNASKED_EVAL_STEPS = 500;

export interface RunIdentity {
  readonly outputDir: string;
  readonly fingerprint: string;
  readonly maxSteps: number;
  /** Epochs that these steps begin. */
  readonly epochs: number;
  /** training_args.json: the run's settings. */
  readonly args: Readonly<Record<string, unknown>>;
}

/** Where a run starts: its state, and values to hand out (null: ranks draw their own). */
export interface StartingPoint {
  readonly state: TrainerState;
  readonly values: readonly MatrixValues[] | null;
}

/** Configurations, state and a tokenizer. */
const SMALL_FILES_BYTES = 1 << 20;

/** A run's output folder: where it starts from, what it saves, what it leaves at the end. */
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
  /** Of the last checkpoint that this run wrote; -1: none. */
  #savedStep = -1;
  readonly #warn: (text: string) => void;
  /** The nodes that save too (save_on_each_node); of the current attempt. */
  #nodes: NodeFolders | null = null;
  #looked = false;
  /** The last save that every node has, or has failed at and was named. */
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
   * Errors: PL_OUTPUT_UNWRITABLE if the folder holds another run's checkpoints and neither resuming nor overwriting was
   * asked for; PL_RESUME_INVALID if there is nothing whole to resume, or it belongs to another run.
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
   * From now on every save goes to these nodes too. The first time, a run that resumes takes the newest whole checkpoint of any node
   * if it is newer than the coordinator's. Returns what there is to say about it.
   * Errors: PL_RESUME_INVALID if no node has one; PL_OUTPUT_UNWRITABLE if a node holds those of an earlier run and nothing was
   * said about it.
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

  /** Checkpoints that this run does not go on from get another name: no later resume takes them for its own. */
  async setAsideOthers(): Promise<void> {
    const moved = await this.#store.setAsideOthers();
    const what = "set aside checkpoints that this run does not go on from";
    if (moved.length > 0) this.#warn(`${what}: ${moved.join(", ")}`);
    const upTo = this.#origin === null ? null : stepOf(this.#origin);
    for (const { node, moved: there } of (await this.#nodes?.setAsideAllBut(this.#store.names, upTo)) ?? []) {
      if (there.length > 0) this.#warn(`${what} on node "${node}": ${there.join(", ")}`);
    }
  }

  /** Nothing lies before its first step: it neither resumes nor has saved. */
  get begins(): boolean {
    return this.#origin === null && !this.#hasSaved;
  }

  get savedStep(): number {
    return this.#savedStep;
  }

  get #hasSaved(): boolean {
    return this.#savedStep >= 0;
  }

  /** What a checkpoint has of each matrix. */
  get savedParts(): readonly MatrixPartName[] {
    return this.#settings.save_only_model ? ["weight", "initial"] : [...STATE_PARTS, "initial"];
  }

  /** No node of the attempt that ended saves any more. */
  detach(): void {
    this.#nodes = null;
  }

  /** Most of what a checkpoint takes on a disk: the adapter and its optimizer's two moments, float32, beside small files. */
  get checkpointBytes(): number {
    const parts = this.#settings.save_only_model ? 1 : 3;
    return parts * 4 * this.#setup.lora!.trainable + SMALL_FILES_BYTES;
  }

  /** The newest of: what this run has saved, what it resumes, the adapter it starts from, nothing. */
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
   * Writes checkpoint-N, on every node that saves too, and deletes what save_total_limit has no room for. `state` then names the
   * best checkpoint, if that evaluation was saved. `given`: all that `savedParts` names.
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
   * The final adapter (with load_best_model_at_end the best checkpoint's), tokenizer and trainer_state.json in output_dir itself, on
   * every node that saves too. Error: PL_RESUME_INVALID if the best checkpoint is no longer whole.
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

  /** A save that a fault cut short is on some disks alone: what the run goes on from is to be on every node. */
  async #bringToNodes(checkpoint: ReadCheckpoint): Promise<void> {
    const { path } = checkpoint;
    // To look at a node's checkpoints is to hash them: not where the save went through.
    if (this.#nodes === null || path === this.#sentToNodes || !this.#store.newestFirst.includes(path)) return;
    const names = await filesOf(path);
    const lacking = await this.#nodes.lacking(stepOf(checkpoint), await hashFiles(path, names));
    const save = basename(path);
    const { nodes } = await this.#toNodes(path, save, names, { targets: lacking });
    for (const node of nodes) if (node.error !== null) this.#warn(describeFailure(save, node));
  }

  /** `dropped`: checkpoints that nodes delete. `targets`: null: no node saves. */
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

/** What was saved where. */
export interface Saved {
  /** The coordinator's. */
  readonly path: string;
  /** With save_on_each_node: what became of it on each node. */
  readonly nodes: readonly NodeSave[];
  /** SHA-256 of each file, which all nodes agree on. */
  readonly files: Readonly<Record<string, string>>;
}

export interface Finished extends Saved {
  /** The checkpoint that the final adapter is from; null: it is the last step's. */
  readonly best: string | null;
}

export function describeFailure(save: string, { node, error }: NodeSave): string {
  return `node "${node}" did not save ${save}: ${error!.message}`;
}

/** No step follows the last update whose loss would tell. Error: PL_LOSS_NOT_FINITE. */
export function assertFinite(values: readonly MatrixValues[], step: number): void {
  for (const { name, part, values: numbers } of values) {
    if (numbers.every(Number.isFinite)) continue;
    throw new PipeloraError("PL_LOSS_NOT_FINITE", `after step ${step}, ${part} of ${name} is not finite`, {
      hint: "Lower the learning rate; nothing of this step was saved.",
    });
  }
}
