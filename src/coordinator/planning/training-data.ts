import type { Config } from "../../config/options.ts";
import type { Dataset } from "../../data/dataset.ts";
import { encodeDataset } from "../../data/encode.ts";
import { cutMicroBatches, type MicroBatchSize, packMicroBatches } from "../../data/micro-batches.ts";
import { TrainingOrder } from "../../data/order.ts";
import { splitDataset } from "../../data/split.ts";
import { evaluationRows, trainingStep, type WeightedRow } from "../../data/steps.ts";
import { type RowTemplate, rowTemplate } from "../../data/templates.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import type { ModelSpec } from "../../models/spec.ts";
import type { Work } from "../../plan/request.ts";
import type { Evaluation, StepSource, TrainStep } from "../run/trainer.ts";

export interface TrainingData {
  readonly train: Dataset;
  readonly evaluation: Dataset | null;
  readonly order: TrainingOrder;
}

/** Reads and encodes the rows. Errors: PL_DATASET_INVALID, PL_TOKENIZER_INVALID, PL_TEMPLATE_INVALID. */
export async function readTrainingData(config: Config, spec: ModelSpec): Promise<TrainingData> {
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
export function templateOf(
  config: Pick<Config, "model" | "template" | "system" | "train_on" | "template_date">,
): () => Promise<RowTemplate> {
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

/** The steps of a run, each made when it is asked for. */
export function stepSource(
  { train, order }: TrainingData,
  spec: ModelSpec,
  size: MicroBatchSize,
  replicas: number,
): StepSource {
  return {
    maxSteps: order.totalSteps,
    at(step): TrainStep {
      const stepOrder = order.step(step);
      const { rows, tokens, epochAfter } = trainingStep(train, stepOrder, spec.lossRule);
      const padded = (batch: Uint32Array) =>
        batch.length * Math.max(...Array.from(batch, (row) => train.rowLength(row)));
      return {
        batches: rowsByReplica(rows, replicas).map((own) => packMicroBatches(cutMicroBatches(own, size))),
        tokens,
        paddedTokens: stepOrder.batches.flat().reduce((sum, batch) => sum + padded(batch), 0),
        epoch: epochAfter,
        endsEpoch: step % order.stepsPerEpoch === 0,
      };
    },
  };
}

/** Tokens and rows of a request to evaluate: some MiB at most, and enough that a pipeline is seldom empty. */
const PART_TOKENS = 1 << 17;
const PART_ROWS = 1 << 13;

/** In micro-batches no larger than those that memory was planned for. The replicas take them in turn. */
export function evaluationOf(dataset: Dataset, batchSize: number, maxTokens: number, replicas: number): Evaluation {
  const packed = (rows: readonly WeightedRow[]) => {
    const cut = cutMicroBatches(rows, { maxTokens });
    return Array.from({ length: replicas }, (_, replica) =>
      packMicroBatches(cut.filter((_own, index) => index % replicas === replica)),
    );
  };
  return {
    *parts() {
      let rows: WeightedRow[] = [];
      let tokens = 0;
      for (const row of evaluationRows(dataset, batchSize)) {
        if (rows.length === PART_ROWS || (rows.length > 0 && tokens + row.tokens.length > PART_TOKENS)) {
          yield packed(rows);
          rows = [];
          tokens = 0;
        }
        rows.push(row);
        tokens += row.tokens.length;
      }
      if (rows.length > 0) yield packed(rows);
    },
    rows: dataset.size,
    steps: Math.ceil(dataset.size / batchSize),
  };
}

/** The part of a plan's Work that comes from the rows. */
export type BatchShape = Pick<
  Work,
  "microBatches" | "tokens" | "labelTokens" | "meanTokens" | "meanLabelTokens" | "rowTokens"
>;

/**
 * The rows that each replica of the pipeline computes. With --replicas each has the batches that are its own in the Trainer's
 * order; where the plan runs replicas beside each other without being told to, they share the step's rows.
 */
function rowsByReplica<T extends { readonly tokens: Int32Array }>(
  rows: readonly (readonly T[])[],
  replicas: number,
): readonly (readonly T[])[] {
  if (rows.length === replicas) return rows;
  const parts = cutMicroBatches(rows.flat(), { count: replicas });
  return Array.from({ length: replicas }, (_, replica) => parts[replica] ?? []);
}

/** The micro-batches of a replica over all steps of the run, or about `most` of them: the largest decides memory, the mean time. */
export function batchShape(
  { train, order }: TrainingData,
  size: MicroBatchSize,
  replicas: number,
  most: number | null,
): BatchShape {
  const largest = { microBatches: 1, tokens: 0, labelTokens: 0 };
  const total = { steps: 0, tokens: 0, labelTokens: 0 };
  const stride = most === null ? 1 : Math.max(1, Math.floor(order.totalSteps / most));
  for (let step = 1; step <= order.totalSteps; step += stride) {
    const rows = order
      .step(step)
      .batches.map((batches) =>
        batches.flatMap((batch) => Array.from(batch, (row) => ({ row, tokens: train.row(row).tokens }))),
      );
    const cuts = rowsByReplica(rows, replicas).map((own) => cutMicroBatches(own, size));
    total.steps++;
    largest.microBatches = Math.max(largest.microBatches, ...cuts.map((cut) => cut.length));
    for (const batch of cuts.flat()) {
      const tokens = sum(batch, (row) => row.tokens.length);
      const labelTokens = sum(batch, ({ row }) => train.lossTokens(row));
      largest.tokens = Math.max(largest.tokens, tokens);
      largest.labelTokens = Math.max(largest.labelTokens, labelTokens);
      total.tokens += tokens;
      total.labelTokens += labelTokens;
    }
  }
  const batches = total.steps * replicas * largest.microBatches;
  return {
    ...largest,
    meanTokens: total.tokens / batches,
    meanLabelTokens: total.labelTokens / batches,
    rowTokens: Math.ceil(typicalRow(train)),
  };
}

/** Tokens of the row that a token finds itself in, on average: what attention, which goes with a row's square, costs a token. */
function typicalRow(rows: Dataset): number {
  let squares = 0;
  for (let row = 0; row < rows.size; row++) squares += rows.rowLength(row) ** 2;
  return squares / Math.max(1, rows.statistics.totalTokens);
}

function sum<T>(items: readonly T[], value: (item: T) => number): number {
  return items.reduce((total, item) => total + value(item), 0);
}
