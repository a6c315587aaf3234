import type { LossRule } from "../models/spec.ts";
import type { Dataset } from "./dataset.ts";
import type { StepOrder } from "./order.ts";

/** One row of a step: views of the dataset's, and with which weight it counts. */
export interface WeightedRow {
  /** [T] */
  readonly tokens: Int32Array;
  /** [T] labels[t] is tokens[t] where the row is trained on that token, else -100. */
  readonly labels: Int32Array;
  /** Of each label's cross entropy. The step's loss is their weighted sum. */
  readonly weight: number;
  /** Position among all rows of the step: the dropout generator's row key. */
  readonly rowId: number;
}

/** The rows of one step in order, each replica's apart. Their cut into micro-batches does not change the result. */
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
 * Rows of a step with a weight per label token from the model's loss rule. step-token-mean: 1 / label tokens of the step
 * over all replicas. micro-batch-mean: 1 / (label tokens of the row's batch × batches of the step over all replicas);
 * a batch without a label token adds nothing.
 */
export function trainingStep(dataset: Dataset, order: StepOrder, rule: LossRule): TrainingStep {
  const batches = order.batches.flat();
  const labelTokens = (batch: Uint32Array) => batch.reduce((sum, row) => sum + dataset.lossTokens(row), 0);
  const counts = new Map(batches.map((batch) => [batch, labelTokens(batch)]));
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  const firstRowId = rowIds(order);
  const rows = order.batches.map((replica) =>
    replica.flatMap((batch) => {
      const weight = 1 / (rule === "step-token-mean" ? total : counts.get(batch)! * batches.length);
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
    labelTokens: total,
  };
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
  const { tokens, labels } = dataset.row(index);
  return { tokens, labels, weight, rowId };
}

/**
 * The rows of a held-out set in order, weighted so that the losses of all add up to the Trainer's eval_loss: each batch's mean
 * counts by its number of rows.
 */
export function* evaluationRows(dataset: Dataset, batchSize: number): Generator<WeightedRow> {
  for (let begin = 0; begin < dataset.size; begin += batchSize) {
    const end = Math.min(begin + batchSize, dataset.size);
    let labels = 0;
    for (let row = begin; row < end; row++) labels += dataset.lossTokens(row);
    const weight = (end - begin) / (labels * dataset.size);
    for (let row = begin; row < end; row++) yield weightedRow(dataset, row, weight, row);
  }
}
