import type { Dataset } from "../../data/dataset.ts";
import { cutMicroBatches, groupSizes, type MicroBatchSize } from "../../data/micro-batches.ts";
import type { StepOrder, TrainingOrder } from "../../data/order.ts";
import { evaluationParts } from "../../data/steps.ts";
import type { EvaluationWork, Work } from "../../plan/request.ts";

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

/** What a shape needs to know of the rows. */
export interface RowSizes {
  /** [row] tokens */
  readonly tokens: Int32Array;
  /** [row] tokens that a loss is taken on */
  readonly labelTokens: Int32Array;
  /** The mean, over tokens, of the length of a token's row. Attention's cost a token grows with it. */
  readonly typical: number;
}

/** Rows read between two yields to the event loop. */
const SLICE_ROWS = 1024;

/** Yields now and then. */
export function* rowSizes(rows: Dataset): Generator<void, RowSizes> {
  const tokens = new Int32Array(rows.size);
  const labelTokens = new Int32Array(rows.size);
  let squares = 0;
  for (let row = 0; row < rows.size; row++) {
    tokens[row] = rows.rowLength(row);
    labelTokens[row] = rows.lossTokens(row);
    squares += tokens[row]! ** 2;
    if (row % SLICE_ROWS === 0) yield;
  }
  return { tokens, labelTokens, typical: squares / Math.max(1, rows.statistics.totalTokens) };
}

/** Every step of the run; each is gone when the next is taken. Null: nothing to take yet. */
export function* everyStep(order: TrainingOrder): Generator<StepOrder | null> {
  for (let step = 1; step <= order.totalSteps; step++) {
    if ((step - 1) % order.stepsPerEpoch === 0) for (const _slice of order.prepare(step)) yield null;
    yield order.step(step);
  }
}

/** About `most` steps, evenly over the run, to keep. */
export function* someSteps(order: TrainingOrder, most: number): Generator<void, StepOrder[]> {
  const stride = Math.max(1, Math.floor(order.totalSteps / most));
  const steps: StepOrder[] = [];
  for (let number = 1; number <= order.totalSteps; number += stride) {
    yield* order.prepare(number);
    const step = order.step(number);
    // Copied: a view would keep each epoch's whole permutation in memory.
    steps.push({ ...step, batches: step.batches.map((batches) => batches.map((batch) => batch.slice())) });
  }
  return steps;
}

/** The micro-batches of one replica over these steps of the run: the largest decides memory, the mean decides time. Yields now and then. */
export function* batchShape(
  rows: RowSizes,
  steps: Iterable<StepOrder | null>,
  size: MicroBatchSize,
  replicas: number,
): Generator<void, BatchShape> {
  const largest = { microBatches: 1, tokens: 0, labelTokens: 0 };
  const total = { steps: 0, tokens: 0, labelTokens: 0 };
  let seen = 0;
  for (const step of steps) {
    if (step === null) {
      yield;
      continue;
    }
    total.steps++;
    for (const own of numbersByReplica(rows, step, replicas)) {
      seen += own.length;
      const groups = groupSizes(lengthsOf(rows, own), size);
      largest.microBatches = Math.max(largest.microBatches, groups.length);
      let row = 0;
      for (const group of groups) {
        let tokens = 0;
        let labelTokens = 0;
        for (const end = row + group; row < end; row++) {
          tokens += rows.tokens[own[row]!]!;
          labelTokens += rows.labelTokens[own[row]!]!;
        }
        largest.tokens = Math.max(largest.tokens, tokens);
        largest.labelTokens = Math.max(largest.labelTokens, labelTokens);
        total.tokens += tokens;
        total.labelTokens += labelTokens;
      }
    }
    if (seen >= SLICE_ROWS) {
      seen = 0;
      yield;
    }
  }
  const batches = total.steps * replicas * largest.microBatches;
  return {
    ...largest,
    meanTokens: total.tokens / batches,
    meanLabelTokens: total.labelTokens / batches,
    rowTokens: Math.ceil(rows.typical),
  };
}

/** One evaluation in micro-batches of at most so many tokens, which replicas take in turn. Yields now and then. */
export function* evaluationShape(rows: Dataset, maxTokens: number, replicas: number): Generator<void, EvaluationWork> {
  let [row, requests, microBatches, squares] = [0, 0, 0, 0];
  for (const count of evaluationParts(rows.size, (index) => rows.rowLength(index))) {
    const lengths = Int32Array.from({ length: count }, (_, own) => rows.rowLength(row + own));
    requests++;
    microBatches += Math.ceil(groupSizes(lengths, { maxTokens }).length / replicas);
    for (const length of lengths) squares += length ** 2;
    row += count;
    yield;
  }
  const { totalTokens, labelTokens } = rows.statistics;
  const batches = microBatches * replicas;
  return {
    ...{ rows: rows.size, requests, microBatches },
    ...{ meanTokens: totalTokens / batches, meanLabelTokens: labelTokens / batches },
    rowTokens: Math.ceil(squares / totalTokens),
  };
}

/** As rowsByReplica, of row numbers. [replica][row] */
function numbersByReplica(rows: RowSizes, { batches }: StepOrder, replicas: number): Uint32Array[] {
  const dealt = batches.map(joined);
  if (dealt.length === replicas) return dealt;
  const all = joined(dealt);
  let begin = 0;
  const parts = groupSizes(lengthsOf(rows, all), { count: replicas }).map((length) => {
    const part = all.subarray(begin, begin + length);
    begin += length;
    return part;
  });
  return Array.from({ length: replicas }, (_, replica) => parts[replica] ?? new Uint32Array(0));
}

function joined(parts: readonly Uint32Array[]): Uint32Array {
  if (parts.length === 1) return parts[0]!;
  const all = new Uint32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let begin = 0;
  for (const part of parts) {
    all.set(part, begin);
    begin += part.length;
  }
  return all;
}

function lengthsOf({ tokens }: RowSizes, numbers: Uint32Array): Int32Array {
  const lengths = new Int32Array(numbers.length);
  for (let index = 0; index < numbers.length; index++) lengths[index] = tokens[numbers[index]!]!;
  return lengths;
}
