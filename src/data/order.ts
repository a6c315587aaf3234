import { PipeloraError } from "../common/errors.ts";
import { atOnce } from "../common/slices.ts";
import { randpermInSlices } from "./mt19937.ts";

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
  /** Epochs completed after the step, as the Trainer logs them: 0.5 is half of the first. */
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
  #cached: { readonly epoch: number; readonly batches: EpochBatches } | null = null;

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

  /** Step 1 … totalSteps. The first of an epoch that was not prepared takes as long as its permutation. */
  step(step: number): StepOrder {
    const { accumulation } = this.options;
    const epoch = this.#epochOf(step);
    const first = ((step - 1) % this.stepsPerEpoch) * accumulation;
    const last = Math.min(first + accumulation, this.batchesPerEpoch);
    return {
      step,
      epoch,
      epochAfter: epoch + last / this.batchesPerEpoch,
      batches: atOnce(this.#epochBatches(epoch)).slice(first, last),
    };
  }

  /** Permutes the epoch of this step, yielding now and then. */
  *prepare(step: number): Generator<void, void> {
    yield* this.#epochBatches(this.#epochOf(step));
  }

  #epochOf(step: number): number {
    return Math.floor((step - 1) / this.stepsPerEpoch);
  }

  *#epochBatches(epoch: number): Generator<void, EpochBatches> {
    if (this.#cached?.epoch === epoch) return this.#cached.batches;
    const { rows, strategy, seed } = this.options;
    const order =
      strategy === "sequential" ? new Uint32Array(rows).map((_, i) => i) : yield* randpermInSlices(rows, seed + epoch);
    const batches = new EpochBatches(this.options, order);
    this.#cached = { epoch, batches };
    return batches;
  }
}

/** The batches of one epoch, dealt to the replicas in turn; each is made when it is asked for. */
class EpochBatches {
  readonly #order: Uint32Array;
  readonly #size: number;
  readonly #replicas: number;
  /** Last batches that are filled up with the epoch's first samples, until every replica has as many full ones; by number. */
  readonly #filled = new Map<number, Uint32Array>();

  constructor({ rows, batchSize, replicas, dropLast }: OrderOptions, order: Uint32Array) {
    this.#order = order;
    this.#size = batchSize;
    this.#replicas = replicas;
    if (dropLast || replicas === 1) return;
    let taken = 0;
    const whole = Math.floor(rows / batchSize);
    const dealt = Math.ceil(Math.ceil(rows / batchSize) / replicas) * replicas;
    for (let number = whole; number < dealt; number++) {
      const batch = new Uint32Array(batchSize);
      const rest = order.subarray(number * batchSize);
      batch.set(rest);
      for (let i = rest.length; i < batchSize; i++) batch[i] = order[taken++ % order.length]!;
      this.#filled.set(number, batch);
    }
  }

  /** [replica][batch] from each replica's own batch `first` up to, without, `last`. */
  slice(first: number, last: number): Uint32Array[][] {
    return Array.from({ length: this.#replicas }, (_, replica) =>
      Array.from({ length: last - first }, (_own, index) => this.#batch((first + index) * this.#replicas + replica)),
    );
  }

  #batch(number: number): Uint32Array {
    return (
      this.#filled.get(number) ??
      this.#order.subarray(number * this.#size, Math.min((number + 1) * this.#size, this.#order.length))
    );
  }
}
