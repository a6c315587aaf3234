import type { LossRule } from "../models/spec.ts";
import type { Dataset } from "./dataset.ts";
import type { StepOrder } from "./order.ts";

/** One row of a step: views of the dataset's arrays, and its weight. */
export interface WeightedRow {
  /** [T] */
  readonly tokens: Int32Array;
  /** [T] labels[t] is tokens[t] where the row is trained on that token, else -100. */
  readonly labels: Int32Array;
  /** Of each label's cross entropy, times its own weight. The step's loss is the sum over all labels. */
  readonly weight: number;
  /** [T] of each label; null: 1 everywhere. */
  readonly weights: Float32Array | null;
  /** Position among all rows of the step: the dropout generator's row key. */
  readonly rowId: number;
}

/** The rows of one step in order, by replica. How they are divided into micro-batches does not change the result. */
export interface TrainingStep {
  readonly step: number;
  readonly epoch: number;
  readonly epochAfter: number;
  /** [replica][row] */
  readonly rows: readonly (readonly WeightedRow[])[];
  readonly tokens: number;
  readonly labelTokens: number;
}

/**
 * Rows of a step with a weight per label token from the model's loss rule: the label's own, 1 unless its message says otherwise, over a sum.
 * step-token-mean: of all labels of the step over all replicas. micro-batch-mean: of the row's batch, times the batches of the step over all
 * replicas; a batch without a label token adds nothing.
 */
export function trainingStep(dataset: Dataset, order: StepOrder, rule: LossRule): TrainingStep {
  const batches = order.batches.flat();
  const weights = new Map(batches.map((batch) => [batch, lossWeight(dataset, batch)]));
  const total = [...weights.values()].reduce((sum, weight) => sum + weight, 0);
  const firstRowId = rowIds(order);
  const rows = order.batches.map((replica) =>
    replica.flatMap((batch) => {
      const weight = 1 / (rule === "step-token-mean" ? total : weights.get(batch)! * batches.length);
      const first = firstRowId.get(batch)!;
      return Array.from(batch, (row, index) => weightedRow(dataset, row, weight, first + index));
    }),
  );
  return {
    step: order.step,
    epoch: order.epoch,
    epochAfter: order.epochAfter,
    rows,
    tokens: rows.flat().reduce((sum, row) => sum + row.tokens.length, 0),
    labelTokens: batches.flatMap((batch) => [...batch]).reduce((sum, row) => sum + dataset.lossTokens(row), 0),
  };
}

function lossWeight(dataset: Dataset, rows: Uint32Array): number {
  return rows.reduce((sum, row) => sum + dataset.lossWeight(row), 0);
}

/** The first row's number of each batch, in the order in which batches were dealt: one replica's larger batches number the rows alike. */
function rowIds({ batches }: StepOrder): Map<Uint32Array, number> {
  const first = new Map<Uint32Array, number>();
  let next = 0;
  for (let turn = 0; turn < Math.max(...batches.map(({ length }) => length)); turn++) {
    for (const replica of batches) {
      const batch = replica[turn]!;
      first.set(batch, next);
      next += batch.length;
    }
  }
  return first;
}

function weightedRow(dataset: Dataset, index: number, weight: number, rowId: number): WeightedRow {
  return { ...dataset.row(index), weight, rowId };
}

/** Tokens and rows of a request to evaluate: a few MiB at most, but enough to keep a pipeline busy. */
const PART_TOKENS = 1 << 17;
const PART_ROWS = 1 << 13;

/** How many rows in order each request to evaluate takes, of rows that have these lengths. */
export function* evaluationParts(rows: number, lengthOf: (row: number) => number): Generator<number> {
  let own = 0;
  let tokens = 0;
  for (let row = 0; row < rows; row++) {
    const length = lengthOf(row);
    if (own === PART_ROWS || (own > 0 && tokens + length > PART_TOKENS)) {
      yield own;
      own = 0;
      tokens = 0;
    }
    own++;
    tokens += length;
  }
  if (own > 0) yield own;
}

/**
 * The rows of a held-out set in order, weighted so that the losses of all add up to the Trainer's eval_loss: each batch's mean
 * counts by its number of rows.
 */
export function* evaluationRows(dataset: Dataset, batchSize: number): Generator<WeightedRow> {
  for (let begin = 0; begin < dataset.size; begin += batchSize) {
    const end = Math.min(begin + batchSize, dataset.size);
    let weights = 0;
    for (let row = begin; row < end; row++) weights += dataset.lossWeight(row);
    const weight = (end - begin) / (weights * dataset.size);
    for (let row = begin; row < end; row++) yield weightedRow(dataset, row, weight, row);
  }
}
