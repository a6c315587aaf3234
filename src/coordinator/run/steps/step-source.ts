import { inSlices } from "../../../common/slices.ts";
import type { Dataset } from "../../../data/dataset.ts";
import {
  cutMicroBatches,
  type MicroBatchSize,
  type PackedMicroBatches,
  packMicroBatches,
} from "../../../data/micro-batches.ts";
import { evaluationParts, evaluationRows, trainingStep, type WeightedRow } from "../../../data/steps.ts";
import type { ModelSpec } from "../../../models/spec.ts";
import { rowsByReplica } from "../../planning/batch-shape.ts";
import type { TrainingData } from "../../planning/training-data.ts";

/** The data of one optimizer step. */
export interface TrainStep {
  /** The micro-batches of each replica. */
  readonly batches: readonly PackedMicroBatches[];
  /** Computed tokens, without padding. */
  readonly tokens: number;
  /** Tokens of the padded batches that the Trainer would make. total_flos counts these. */
  readonly paddedTokens: number;
  /** Epochs after this step, as the Trainer counts them: finished batches over batches of an epoch. */
  readonly epoch: number;
  readonly endsEpoch: boolean;
}

export interface StepSource {
  readonly maxSteps: number;
  /** The data of a step, counted from 1. The first step of an epoch permutes the rows, in slices that let the event loop run. */
  at(step: number): Promise<TrainStep>;
}

export interface Evaluation {
  /** The set in parts, each made when it is asked for. A part has the micro-batches of each replica. */
  parts(): Iterable<readonly PackedMicroBatches[]>;
  readonly rows: number;
  /** How many batches the Trainer would make. */
  readonly steps: number;
}

/** The steps of a run, each made when it is asked for. */
export function stepSource(
  { train, order }: Pick<TrainingData, "train" | "order">,
  spec: ModelSpec,
  size: MicroBatchSize,
  replicas: number,
): StepSource {
  return {
    maxSteps: order.totalSteps,
    async at(step): Promise<TrainStep> {
      await inSlices(order.prepare(step));
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

/** The held-out rows in micro-batches of at most `maxTokens`, for which memory was planned. Replicas take them in turn. */
export function evaluationOf(dataset: Dataset, batchSize: number, maxTokens: number, replicas: number): Evaluation {
  const packed = (rows: readonly WeightedRow[]) => {
    const cut = cutMicroBatches(rows, { maxTokens });
    return Array.from({ length: replicas }, (_, replica) =>
      packMicroBatches(cut.filter((_own, index) => index % replicas === replica)),
    );
  };
  return {
    *parts() {
      const all = evaluationRows(dataset, batchSize);
      for (const count of evaluationParts(dataset.size, (row) => dataset.rowLength(row))) {
        yield packed(Array.from({ length: count }, () => all.next().value as WeightedRow));
      }
    },
    rows: dataset.size,
    steps: Math.ceil(dataset.size / batchSize),
  };
}
