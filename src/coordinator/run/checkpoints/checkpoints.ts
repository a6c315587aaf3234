import { randomBytes } from "node:crypto";
import { readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { PipeloraError } from "../../../common/errors.ts";
import { makeFolder } from "../../../common/files.ts";
import { adapterKey, adapterMatrices, openAdapter, writeAdapter } from "../../../formats/adapter.ts";
import { syncFolder, writeTextAtomically } from "../../../formats/atomic-file.ts";
import {
  float32Bytes,
  openSafetensors,
  readFloat32,
  type TensorToWrite,
  writeSafetensors,
} from "../../../formats/safetensors.ts";
import { copyTokenizer } from "../../../formats/tokenizer/copy.ts";
import type { ResolvedLora } from "../../../models/lora-targets.ts";
import type { MatrixPartName, MatrixValues } from "../../cluster/pipeline.ts";
import { checkHashes, writeHashes } from "./checkpoint-store.ts";
import { adapterForm, weightsByName } from "./converted-adapter.ts";

const OPTIMIZER_FILE = "optimizer.safetensors";
export const STATE_FILE = "trainer_state.json";
const MOMENTS = ["exp_avg", "exp_avg_sq"] as const;

/** What is the same in every checkpoint of a run. */
export interface CheckpointContext {
  readonly outputDir: string;
  readonly lora: ResolvedLora;
  /** Weights of the base that are saved with the adapter. */
  readonly bases: readonly TensorToWrite[];
  /** The base's name in adapter_config.json. */
  readonly baseModel: string;
  /** The folder from which the tokenizer is copied. */
  readonly modelDir: string;
  /** The run's settings, for training_args.json. */
  readonly args: Readonly<Record<string, unknown>>;
}

export interface CheckpointContents {
  readonly step: number;
  /** How many steps the learning rate's schedule has counted. */
  readonly scheduledSteps: number;
  /** The text of trainer_state.json. */
  readonly state: string;
  /** The learning rate of each of the optimizer's groups. */
  readonly learningRates: readonly number[];
  readonly values: readonly MatrixValues[];
}

/**
 * Writes output_dir/checkpoint-N. The files go to a folder with another name, are synced, and then the folder is renamed: so an incomplete
 * checkpoint is never resumed. Files are named as the Trainer's; the states of optimizer, scheduler and generator are safetensors and JSON.
 * Returns the path.
 */
export async function saveCheckpoint(context: CheckpointContext, contents: CheckpointContents): Promise<string> {
  const final = join(context.outputDir, `checkpoint-${contents.step}`);
  const temporary = join(context.outputDir, `.checkpoint-${contents.step}-${randomBytes(4).toString("hex")}`);
  try {
    await makeFolder(temporary);
    await saveAdapter(temporary, context, contents.values);
    const moments = contents.values.filter(({ part }) => part === "exp_avg" || part === "exp_avg_sq");
    if (moments.length > 0) await writeSafetensors(join(temporary, OPTIMIZER_FILE), moments.map(momentTensor));
    const scheduler = { last_epoch: contents.scheduledSteps, _last_lr: contents.learningRates };
    await writeTextAtomically(join(temporary, "scheduler.json"), `${JSON.stringify(scheduler)}\n`);
    await writeTextAtomically(join(temporary, "training_args.json"), `${JSON.stringify(context.args, null, 2)}\n`);
    await copyTokenizer(context.modelDir, temporary);
    await writeTextAtomically(join(temporary, STATE_FILE), contents.state);
    await writeHashes(temporary);
    await rm(final, { recursive: true, force: true });
    await rename(temporary, final);
    await syncFolder(context.outputDir);
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true }).catch(() => {});
    if (cause instanceof PipeloraError) throw cause;
    throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `can't write ${final}: ${(cause as Error).message}`, { cause });
  }
  return final;
}

/** Writes the adapter alone, as peft's save_pretrained does. Returns the names of its files. */
export async function saveAdapter(
  dir: string,
  context: CheckpointContext,
  values: readonly MatrixValues[],
): Promise<string[]> {
  const form = adapterForm(context.lora);
  const weights = weightsByName(values);
  return writeAdapter(dir, {
    settings: form.settings,
    targetModules: context.lora.targetModules,
    baseModel: context.baseModel,
    matrices: form.matrices,
    values: (name) => form.join(name, weights),
    bases: context.bases,
  });
}

const momentName = (name: string, part: MatrixPartName) => `${adapterKey(name)}.${part}`;

function momentTensor({ name, part, values }: MatrixValues): TensorToWrite {
  return {
    name: momentName(name, part),
    dtype: "float32",
    shape: [values.length],
    data: () => float32Bytes(values),
  };
}

export interface ReadCheckpoint {
  readonly path: string;
  readonly state: string;
  readonly values: readonly MatrixValues[];
}

/** Reads the weights of a checkpoint's adapter. Errors: PL_RESUME_INVALID if a file is missing or incomplete, or belongs to other LoRA settings. */
export async function readWeights(path: string, lora: ResolvedLora): Promise<MatrixValues[]> {
  return explained(path, async () => {
    await checkHashes(path);
    return weightsOf(path, lora);
  });
}

/** Reads a checkpoint. Errors: those of readWeights(). */
export async function readCheckpoint(path: string, lora: ResolvedLora): Promise<ReadCheckpoint> {
  return explained(path, async () => {
    await checkHashes(path);
    const state = await readFile(join(path, STATE_FILE), "utf8");
    const optimizer = await openSafetensors(join(path, OPTIMIZER_FILE));
    const values: MatrixValues[] = [];
    for (const weight of await weightsOf(path, lora)) {
      values.push(weight);
      if (weight.part !== "weight") continue;
      for (const part of MOMENTS) {
        const name = momentName(weight.name, part);
        const location = optimizer.tensors.get(name);
        if (location === undefined) throw new Error(`${OPTIMIZER_FILE} lacks ${name}`);
        const moment = await readFloat32(location);
        if (moment.length !== weight.values.length) throw new Error(`${name} has another size`);
        values.push({ ...weight, part, values: moment });
      }
    }
    checkStep(path, state);
    return { path, state, values };
  });
}

async function weightsOf(path: string, lora: ResolvedLora): Promise<MatrixValues[]> {
  const form = adapterForm(lora);
  const read = adapterMatrices(await openAdapter(path), form.matrices);
  const weights: MatrixValues[] = [];
  for (const { name } of form.matrices) weights.push(...form.split(name, await read(name)));
  return weights;
}

async function explained<T>(path: string, read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (cause) {
    throw new PipeloraError(
      "PL_RESUME_INVALID",
      `${path} is not a complete checkpoint of this run: ${(cause as Error).message}`,
      { cause, hint: "Resume from another checkpoint, or train anew with --overwrite-output-dir." },
    );
  }
}

/** Fails if the state has another step than the folder's name: the folder was renamed, or the file is damaged. */
function checkStep(path: string, text: string): void {
  const named = /checkpoint-(\d+)\/?$/.exec(path)?.[1];
  const { global_step: step } = JSON.parse(text) as { global_step?: unknown };
  if (named !== undefined && step !== Number(named)) {
    throw new Error(`${STATE_FILE} says step ${String(step)}, the folder ${named}`);
  }
}

/**
 * The first of these checkpoints that is whole; null if none is. `onDamaged` is told each one that is passed over, and why.
 */
export async function firstWhole(
  paths: readonly string[],
  lora: ResolvedLora,
  onDamaged: (problem: string) => void,
): Promise<ReadCheckpoint | null> {
  for (const path of paths) {
    const found = await readCheckpoint(path, lora).catch((error: Error) => {
      onDamaged(error.message);
      return null;
    });
    if (found !== null) return found;
  }
  return null;
}
