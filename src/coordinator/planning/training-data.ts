import type { Config } from "../../config/options.ts";
import type { Dataset } from "../../data/dataset.ts";
import { encodeDataset } from "../../data/encode.ts";
import { TrainingOrder } from "../../data/order.ts";
import { splitDataset } from "../../data/split.ts";
import { type RowTemplate, rowTemplate } from "../../data/templates.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import type { ModelSpec } from "../../models/spec.ts";

export type TemplateSettings = Pick<Config, "model" | "template" | "system" | "train_on" | "template_date">;

/** Which rows, how they become tokens, and in which order and batches they are trained on. */
export type DataSettings = TemplateSettings &
  Pick<
    Config,
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
    | "num_train_epochs"
    | "max_steps"
  >;

export interface TrainingData {
  readonly train: Dataset;
  readonly evaluation: Dataset | null;
  readonly order: TrainingOrder;
}

/** Reads and encodes the rows. Errors: PL_DATASET_INVALID, PL_TOKENIZER_INVALID, PL_TEMPLATE_INVALID. */
export async function readTrainingData(config: DataSettings, spec: ModelSpec): Promise<TrainingData> {
  const options = { maxLength: config.max_length, vocabSize: spec.shape.vocab, columns: config.columns };
  const template = templateOf(config);
  const rows = await encodeDataset(config.dataset!, template, options);
  let train = rows;
  let evaluation: Dataset | null = null;
  if (config.eval_dataset !== null) evaluation = await encodeDataset(config.eval_dataset, template, options);
  else if (config.validation_split > 0) {
    ({ train, evaluation } = splitDataset(rows, config.validation_split, config.seed));
  }
  const order = new TrainingOrder({
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
  return { train, evaluation, order };
}

/** A date without a time is that day's beginning here, not in Greenwich. */
export function dateOf({ template_date: date }: Pick<Config, "template_date">): { now?: Date } {
  if (date === null) return {};
  return { now: new Date(/^\d{4}-\d\d-\d\d$/.test(date) ? `${date}T00:00:00` : date) };
}

/** The tokenizer is loaded only when text comes, so that ready ids need none. */
export function templateOf(config: TemplateSettings): () => Promise<RowTemplate> {
  let loaded: Promise<RowTemplate> | null = null;
  return () => {
    loaded ??= loadTokenizer(config.model!).then((tokenizer) =>
      rowTemplate(tokenizer, {
        name: config.template,
        system: config.system,
        trainOn: config.train_on,
        ...dateOf(config),
      }),
    );
    return loaded;
  };
}
