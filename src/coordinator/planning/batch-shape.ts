import type { Dataset } from "../../data/dataset.ts";
import { cutMicroBatches, type MicroBatchSize } from "../../data/micro-batches.ts";
import type { Work } from "../../plan/request.ts";
import type { TrainingData } from "./training-data.ts";

/** The part of a plan's Work that comes from the rows. */
export type BatchShape = Pick<
  Work,
  "microBatches" | "tokens" | "labelTokens" | "meanTokens" | "meanLabelTokens" | "rowTokens"
>;

/**
 * The rows that each replica of the pipeline computes. With --replicas each has the batches that are its own in the Trainer's
 * order; where the plan runs replicas beside each other without being told to, they share the step's rows.
 */
export function rowsByReplica<T extends { readonly tokens: Int32Array }>(
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
