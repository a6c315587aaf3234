import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import type { Dataset } from "../../data/dataset.ts";
import { type EncodedSets, encodeSets, type RowSet } from "../../data/encode.ts";
import { mixSets } from "../../data/mixture.ts";
import { TrainingOrder } from "../../data/order.ts";
import { datasetError } from "../../data/readers/checks.ts";
import { splitRows } from "../../data/split.ts";
import type { ModelSetup } from "./model-setup.ts";
import { named } from "./named-adapters.ts";
import { findSets } from "./row-sets.ts";
import { type TemplateSettings, templatesOf } from "./row-templates.ts";

/** Which rows, how they become tokens, and in which order and batches they are trained on. */
export type DataSettings = TemplateSettings &
  Pick<
    Config,
    | "hub"
    | "template"
    | "dataset"
    | "eval_dataset"
    | "validation_split"
    | "columns"
    | "max_length"
    | "seed"
    | "data_seed"
    | "train_sampling_strategy"
    | "per_device_train_batch_size"
    | "gradient_accumulation_steps"
    | "replicas"
    | "dataloader_drop_last"
    | "per_device_eval_batch_size"
    | "num_train_epochs"
    | "max_steps"
  >;

/** What a set gives to an epoch of training. */
export interface SetPart {
  readonly label: string;
  /** Rows of an epoch, counting rows that are repeated. */
  readonly rows: number;
  /** Of them labels. */
  readonly labelTokens: number;
  /** The set's own rows: trained on, and held out. */
  readonly own: number;
  readonly heldOut: number;
}

export interface TrainingData {
  readonly train: Dataset;
  readonly evaluation: Dataset | null;
  readonly order: TrainingOrder;
  /** In the order in which they are given. */
  readonly parts: readonly SetPart[];
}

/** The same for each of these adapters; rows that several of them train on are read and held once. Errors name the adapter's `label`. */
export async function readAdaptersData(
  adapters: readonly { readonly label: string; readonly config: DataSettings }[],
  model: Pick<ModelSetup, "dir" | "spec">,
  log: Logger,
): Promise<TrainingData[]> {
  const known = new Map<string, Promise<Rows>>();
  const all: TrainingData[] = [];
  for (const { label, config } of adapters) {
    const key = JSON.stringify([
      ...ROW_SETTINGS.map((name) => config[name]),
      config.validation_split > 0 ? config.seed : null,
    ]);
    const rows = known.get(key) ?? readRows(config, model, log);
    known.set(key, rows);
    try {
      const read = await rows;
      all.push({ ...read, order: orderOf(config, read.train) });
    } catch (error) {
      throw named(label, error);
    }
  }
  return all;
}

type Rows = Omit<TrainingData, "order">;

/** What rows depend on. */
const ROW_SETTINGS = [
  "dataset",
  "eval_dataset",
  "validation_split",
  "columns",
  "max_length",
  "system",
  "template",
  "template_date",
  "train_on",
] as const satisfies readonly (keyof DataSettings)[];

/**
 * Finds (and fetches), reads, encodes and mixes the rows. Errors: PL_DATASET_INVALID, PL_TOKENIZER_INVALID, PL_TEMPLATE_INVALID; those of
 * hub/ for sets that are named.
 */
export async function readTrainingData(
  config: DataSettings,
  { dir, spec }: Pick<ModelSetup, "dir" | "spec">,
  log: Logger,
): Promise<TrainingData> {
  const rows = await readRows(config, { dir, spec }, log);
  return { ...rows, order: orderOf(config, rows.train) };
}

async function readRows(
  config: DataSettings,
  { dir, spec }: Pick<ModelSetup, "dir" | "spec">,
  log: Logger,
): Promise<Rows> {
  const options = { maxLength: config.max_length, vocabSize: spec.shape.vocab };
  const templates = templatesOf(config, dir, log);
  const sets = await findSets(config.dataset!, config, templates, log);
  const evaluated = config.eval_dataset === null ? null : await findSets(config.eval_dataset, config, templates, log);
  if (evaluated?.some(({ weight }) => weight !== null)) {
    throw datasetError("Sets of --eval-dataset have no weight: each row counts once.", "Leave the weights out.");
  }
  const { train, evaluation, parts } = mixed(sets, await encodeSets(sets, options), config);
  const held = evaluated === null ? evaluation : (await encodeSets(evaluated, options)).rows;
  return { train, evaluation: config.dataloader_drop_last && held !== null ? fullBatches(held, config) : held, parts };
}

/** The Trainer's dataloader_drop_last is evaluation's too. Error: PL_DATASET_INVALID where no batch is full. */
function fullBatches(
  rows: Dataset,
  { per_device_eval_batch_size: size }: Pick<Config, "per_device_eval_batch_size">,
): Dataset {
  const kept = rows.size - (rows.size % size);
  if (kept === 0) {
    throw datasetError(
      `${rows.size} rows to evaluate on make no full batch of ${size}.`,
      "Lower --per-device-eval-batch-size, or leave out --dataloader-drop-last.",
    );
  }
  return kept === rows.size ? rows : rows.select(range(kept));
}

function orderOf(config: DataSettings, train: Dataset): TrainingOrder {
  return new TrainingOrder({
    rows: train.size,
    strategy: config.train_sampling_strategy,
    seed: config.data_seed ?? config.seed,
    batchSize: config.per_device_train_batch_size,
    accumulation: config.gradient_accumulation_steps,
    replicas: config.replicas ?? 1,
    dropLast: config.dataloader_drop_last,
    epochs: config.num_train_epochs,
    maxSteps: config.max_steps,
  });
}

/** Rows are held out of each set by itself, before sets are mixed, so that no held-out row is trained on. */
function mixed(
  sets: readonly RowSet[],
  { rows, sizes }: EncodedSets,
  { validation_split: share, seed }: Pick<Config, "validation_split" | "seed">,
): Omit<TrainingData, "order"> {
  const bases = sizes.map((_, set) => sizes.slice(0, set).reduce((sum, size) => sum + size, 0));
  const splits = sets.map(({ label }, set) => {
    const { train, evaluation } =
      share > 0 ? splitRows(sizes[set]!, share, seed, label) : { train: range(sizes[set]!), evaluation: [] };
    const stored = (row: number) => bases[set]! + row;
    return { train: train.map(stored), evaluation: evaluation.map(stored) };
  });
  const own = splits.flatMap(({ train }) => train);
  const epoch = mixSets(
    splits.map(({ train }) => train.length),
    sets.map(({ weight }) => weight),
  );
  const whole = epoch.length === rows.size && sets.length === 1;
  const train = whole ? rows : rows.select(epoch.map((row) => own[row]!));
  const counted = sets.map(() => ({ rows: 0, labelTokens: 0 }));
  for (const row of epoch) {
    const stored = own[row]!;
    const part = counted[bases.findLastIndex((base) => base <= stored)]!;
    part.rows += 1;
    part.labelTokens += rows.lossTokens(stored);
  }
  return {
    train,
    evaluation: share > 0 ? rows.select(splits.flatMap((split) => split.evaluation)) : null,
    parts: sets.map(({ label }, set) => ({
      label,
      ...counted[set]!,
      own: splits[set]!.train.length,
      heldOut: splits[set]!.evaluation.length,
    })),
  };
}

function range(length: number): number[] {
  return Array.from({ length }, (_, index) => index);
}
