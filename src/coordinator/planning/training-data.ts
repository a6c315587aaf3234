import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import type { Dataset } from "../../data/dataset.ts";
import { type EncodedSets, encodeSets, type RowSet } from "../../data/encode.ts";
import { cutMicroBatches, type MicroBatchSize, packMicroBatches } from "../../data/micro-batches.ts";
import { mixSets } from "../../data/mixture.ts";
import { TrainingOrder } from "../../data/order.ts";
import { datasetError } from "../../data/readers/checks.ts";
import { splitRows } from "../../data/split.ts";
import { evaluationRows, trainingStep, type WeightedRow } from "../../data/steps.ts";
import { type RowTemplate, rowTemplate } from "../../data/templates.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import type { Tokenizer } from "../../formats/tokenizer/tokenizer.ts";
import type { ModelSpec } from "../../models/spec.ts";
import type { Work } from "../../plan/request.ts";
import type { Evaluation, StepSource, TrainStep } from "../run/trainer.ts";
import type { ModelSetup } from "./model-setup.ts";
import { findSets } from "./row-sets.ts";

/** What a set gives to an epoch of training. */
export interface SetPart {
  readonly label: string;
  /** Rows of the epoch, those that come again included. */
  readonly rows: number;
  /** Of them labels. */
  readonly labelTokens: number;
  /** Rows of its own that are trained on, and held out. */
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

/**
 * Finds (and fetches), reads, encodes and mixes the rows. Errors: PL_DATASET_INVALID, PL_TOKENIZER_INVALID, PL_TEMPLATE_INVALID; those of
 * hub/ for sets that are named.
 */
export async function readTrainingData(
  config: Config,
  { dir, spec }: Pick<ModelSetup, "dir" | "spec">,
  log: Logger,
): Promise<TrainingData> {
  const options = { maxLength: config.max_length, vocabSize: spec.shape.vocab };
  const templates = templatesOf(config, dir);
  const sets = await findSets(config.dataset!, config, templates, log);
  const evaluated = config.eval_dataset === null ? null : await findSets(config.eval_dataset, config, templates, log);
  if (evaluated?.some(({ weight }) => weight !== null)) {
    throw datasetError("Sets of --eval-dataset have no weight: each row counts once.", "Leave the weights out.");
  }
  const { train, evaluation, parts } = mixed(sets, await encodeSets(sets, options), config);
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
  const held = evaluated === null ? evaluation : (await encodeSets(evaluated, options)).rows;
  return { train, evaluation: held, order, parts };
}

/** Each set's share is held out of the set itself, so that no row of it comes again in training. */
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

/** A date without a time is that day's beginning here, not in Greenwich. */
export function dateOf({ template_date: date }: Pick<Config, "template_date">): { now?: Date } {
  if (date === null) return {};
  return { now: new Date(/^\d{4}-\d\d-\d\d$/.test(date) ? `${date}T00:00:00` : date) };
}

/** Templates by name over one tokenizer, which is loaded only when text comes, so that ready ids need none. */
export type Templates = (name: Config["template"]) => () => Promise<RowTemplate>;

export function templatesOf(
  config: Pick<Config, "system" | "train_on" | "template_date">,
  modelDir: string,
): Templates {
  let tokenizer: Promise<Tokenizer> | null = null;
  const made = new Map<string, Promise<RowTemplate>>();
  return (name) => () => {
    tokenizer ??= loadTokenizer(modelDir);
    const known = made.get(name);
    if (known !== undefined) return known;
    const settings = { name, system: config.system, trainOn: config.train_on, ...dateOf(config) };
    const template = tokenizer.then((loaded) => rowTemplate(loaded, settings));
    made.set(name, template);
    return template;
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
