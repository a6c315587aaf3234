import { PipeloraError } from "../common/errors.ts";
import { randperm } from "./mt19937.ts";

export interface OrderOptions {
  /** Rows of the training set. */
  readonly rows: number;
  readonly strategy: "random" | "sequential";
  /** data_seed, else seed. */
  readonly seed: number;
  /** Rows of a batch of one replica. */
  readonly batchSize: number;
  /** Batches of one replica in an optimizer step. */
  readonly accumulation: number;
  /** Replicas of the whole pipeline (data parallel). */
  readonly replicas: number;
  /** dataloader_drop_last: leave out a last batch that is not full. */
  readonly dropLast: boolean;
  readonly epochs: number;
  /** Optimizer steps; overrides `epochs` when positive. */
  readonly maxSteps: number;
}

/** One optimizer step: for each replica the batches it accumulates, each a list of row numbers. */
export interface StepOrder {
  /** 1 for the first. */
  readonly step: number;
  /** 0 for the first. */
  readonly epoch: number;
  /** Passes made once the step is done, as the Trainer logs it: 0.5 is half the first. */
  readonly epochAfter: number;
  /** [replica][batch] */
  readonly batches: readonly (readonly Uint32Array[])[];
}

/**
 * The Trainer's order of samples: each epoch permuted from seed + epoch, batches dealt to replicas in turn, and short
 * accumulation at an epoch's end. Any step can be asked for, so that a resumed run needs no replay.
 */
export class TrainingOrder {
  readonly options: OrderOptions;
  /** Batches that each replica sees in an epoch. */
  readonly batchesPerEpoch: number;
  readonly stepsPerEpoch: number;
  /** Optimizer steps of the whole run. */
  readonly totalSteps: number;
  #cached: { epoch: number; batches: readonly (readonly Uint32Array[])[] } | null = null;

  constructor(options: OrderOptions) {
    this.options = options;
    const { rows, batchSize, accumulation, replicas, dropLast, epochs, maxSteps } = options;
    const batches = dropLast ? Math.floor(rows / batchSize) : Math.ceil(rows / batchSize);
    this.batchesPerEpoch = dropLast ? Math.floor(batches / replicas) : Math.ceil(batches / replicas);
    if (this.batchesPerEpoch === 0) {
      throw new PipeloraError(
        "PL_DATASET_INVALID",
        `${rows} rows make no full batch of ${batchSize} for each of ${replicas} replicas.`,
        { hint: "Lower --per-device-train-batch-size, or leave out --dataloader-drop-last." },
      );
    }
    this.stepsPerEpoch = Math.ceil(this.batchesPerEpoch / accumulation);
    this.totalSteps = maxSteps > 0 ? maxSteps : Math.ceil(epochs * this.stepsPerEpoch);
  }

  /** Epochs begun by the run. */
  get totalEpochs(): number {
    return Math.ceil(this.totalSteps / this.stepsPerEpoch);
  }

  /** Step 1 … totalSteps. */
  step(step: number): StepOrder {
    const { accumulation } = this.options;
    const epoch = Math.floor((step - 1) / this.stepsPerEpoch);
    const first = ((step - 1) % this.stepsPerEpoch) * accumulation;
    const last = Math.min(first + accumulation, this.batchesPerEpoch);
    return {
      step,
      epoch,
      epochAfter: epoch + last / this.batchesPerEpoch,
      batches: this.#epochBatches(epoch).map((batches) => batches.slice(first, last)),
    };
  }

  #epochBatches(epoch: number): readonly (readonly Uint32Array[])[] {
    if (this.#cached?.epoch !== epoch) this.#cached = { epoch, batches: dealBatches(this.options, epoch) };
    return this.#cached.batches;
  }
}

/** [replica][batch] of one epoch. */
function dealBatches(options: OrderOptions, epoch: number): Uint32Array[][] {
  const { rows, strategy, seed, batchSize, replicas, dropLast } = options;
  const order =
    strategy === "sequential" ? Uint32Array.from({ length: rows }, (_, i) => i) : randperm(rows, seed + epoch);
  const batches: Uint32Array[] = [];
  for (let begin = 0; begin < rows; begin += batchSize) batches.push(order.subarray(begin, begin + batchSize));
  if (dropLast && batches.at(-1)!.length < batchSize) batches.pop();
  if (replicas > 1) {
    if (dropLast) batches.length -= batches.length % replicas;
    else wrapAround(batches, order, batchSize, replicas);
  }
  const dealt = Array.from({ length: replicas }, (): Uint32Array[] => []);
  batches.forEach((batch, index) => {
    dealt[index % replicas]!.push(batch);
  });
  return dealt;
}

/** Fills the last batches up with the epoch's first samples, until every replica has as many full ones. */
function wrapAround(batches: Uint32Array[], order: Uint32Array, batchSize: number, replicas: number): void {
  let taken = 0;
  const filled = (batch: Uint32Array) => {
    const full = new Uint32Array(batchSize);
    full.set(batch);
    for (let i = batch.length; i < batchSize; i++) full[i] = order[taken++ % order.length]!;
    return full;
  };
  const last = batches.pop()!;
  batches.push(last.length < batchSize ? filled(last) : last);
  while (batches.length % replicas !== 0) batches.push(filled(new Uint32Array(0)));
}
