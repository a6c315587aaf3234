import { inSlices } from "../../common/slices.ts";
import type { Config } from "../../config/options.ts";
import type { Dataset } from "../../data/dataset.ts";
import type { MicroBatchSize } from "../../data/micro-batches.ts";
import type { StepOrder } from "../../data/order.ts";
import type { WorkChoice } from "../../plan/choose.ts";
import type { Device } from "../../plan/devices.ts";
import { countsNear, countsToTry, microBatchCount, stepsUpTo } from "../../plan/micro-batches.ts";
import type { Work } from "../../plan/request.ts";
import { type BatchShape, batchShape, evaluationShape, everyStep, rowSizes, someSteps } from "./batch-shape.ts";
import { once } from "./once.ts";
import type { TrainingData } from "./training-data.ts";

/** How a step may be cut and run. */
export type WorkSettings = Pick<Config, "micro_batch_tokens" | "replicas" | "schedule" | "gradient_checkpointing">;

/** One way to run an adapter's steps, and how a replica's rows are cut for it. */
export interface Cut extends WorkChoice {
  readonly size: MicroBatchSize;
  work(sampled: boolean): Promise<Work>;
}

/** The same of a round: a step of every adapter, one after the other through the pipeline. */
export interface RoundCut extends WorkChoice {
  /** Each adapter's. */
  readonly parts: readonly Cut[];
  work(sampled: boolean): Promise<Work>;
}

/** The ways to cut a step that a plan may choose from. */
export interface Ways<C> {
  /** The one that does not depend on the placement, only on the rows, the settings and the kind of device. */
  fixed(devices: readonly Device[]): C;
  /** All that are worth trying with the settings' number of replicas, or with one. */
  cuts(): C[];
  /** All that are worth trying on these devices, with any number of replicas. */
  free(devices: readonly Device[]): C[];
  /** More ways, near one of those above. */
  near(cut: C): Promise<C[]>;
}

export interface Workload extends Ways<RoundCut> {
  /** Whether it trains. Training runs many steps, so measuring the devices' speed first pays off. */
  readonly trains: boolean;
  /** How the run was cut until now; null: it begins. */
  readonly previous: RoundCut | null;
}

/** Rounds of these adapters' steps. `previous`: how each was cut until now. */
export function roundWorkload(adapters: readonly Ways<Cut>[], previous: readonly Cut[] | null = null): Workload {
  // Ways of one number of replicas go side by side, from the fewest micro-batches on; a list that ends goes on with its last.
  const sideBySide = (lists: readonly Cut[][]): RoundCut[] => {
    const counts = [...new Set(lists[0]!.map(({ replicas }) => replicas))];
    return counts.flatMap((replicas) => {
      const own = lists.map((list) => list.filter((cut) => cut.replicas === replicas));
      if (own.some((list) => list.length === 0)) return [];
      const longest = Math.max(...own.map((list) => list.length));
      return Array.from({ length: longest }, (_, at) =>
        roundCut(own.map((list) => list[Math.min(at, list.length - 1)]!)),
      );
    });
  };
  return {
    trains: true,
    previous: previous === null ? null : roundCut(previous),
    fixed: (devices) => roundCut(adapters.map((one) => one.fixed(devices))),
    cuts: () => sideBySide(adapters.map((one) => one.cuts())),
    free: (devices) => sideBySide(adapters.map((one) => one.free(devices))),
    near: async ({ parts }) => sideBySide(await Promise.all(adapters.map((one, index) => one.near(parts[index]!)))),
  };
}

function roundCut(parts: readonly Cut[]): RoundCut {
  const [first] = parts;
  return {
    replicas: first!.replicas,
    parts,
    work: async (sampled) => roundWork(await Promise.all(parts.map((part) => part.work(sampled)))),
  };
}

/** What a round does: the largest micro-batch decides memory, their number and mean the time. */
export function roundWork(adapters: readonly Work[]): Work {
  const [first, ...others] = adapters;
  if (others.length === 0) return first!;
  const evaluations = adapters.flatMap(({ evaluation }) => (evaluation === undefined ? [] : [evaluation]));
  return {
    ...first!,
    ...meanBatches(adapters),
    tokens: Math.max(...adapters.map(({ tokens }) => tokens)),
    labelTokens: Math.max(...adapters.map(({ labelTokens }) => labelTokens)),
    ...(evaluations.length === 0
      ? {}
      : {
          evaluation: {
            ...meanBatches(evaluations),
            rows: evaluations.reduce((sum, { rows }) => sum + rows, 0),
            requests: evaluations.reduce((sum, { requests }) => sum + requests, 0),
          },
        }),
  };
}

type Batches = Pick<Work, "microBatches" | "meanTokens" | "meanLabelTokens" | "rowTokens">;

function meanBatches(all: readonly Batches[]): Batches {
  const microBatches = all.reduce((sum, own) => sum + own.microBatches, 0);
  const mean = (of: (own: Batches) => number) =>
    all.reduce((sum, own) => sum + own.microBatches * of(own), 0) / microBatches;
  return {
    microBatches,
    meanTokens: mean(({ meanTokens }) => meanTokens),
    meanLabelTokens: mean(({ meanLabelTokens }) => meanLabelTokens),
    rowTokens: Math.ceil(mean(({ rowTokens }) => rowTokens)),
  };
}

/** A sample of steps that represents the run while plans are compared. */
const SAMPLED_STEPS = 16;

export function trainingWorkload(
  config: WorkSettings,
  data: Pick<TrainingData, "train" | "evaluation" | "order">,
): Ways<Cut> {
  const { batchSize, accumulation, replicas: dealt } = data.order.options;
  const rows = Math.min(data.train.size, batchSize * accumulation);
  const rowTokens = data.train.statistics.totalTokens / data.train.size;
  const longestHeldOut = data.evaluation === null ? 0 : longestRow(data.evaluation);
  const sizes = once(() => inSlices(rowSizes(data.train)));
  const sample = once(() => inSlices(someSteps(data.order, SAMPLED_STEPS)));
  const cut = (replicas: number, size: MicroBatchSize): Cut => {
    const shape = async (steps: Iterable<StepOrder | null>) => {
      const trained = await inSlices(batchShape(await sizes(), steps, size, replicas));
      // Evaluation goes through the same memory; a row of it is never cut.
      return trainingWork(config, { ...trained, tokens: Math.max(trained.tokens, longestHeldOut) });
    };
    const some = once(async () => shape(await sample()));
    const all = once(async () => {
      const work = await shape(everyStep(data.order));
      if (data.evaluation === null) return work;
      return { ...work, evaluation: await inSlices(evaluationShape(data.evaluation, work.tokens, replicas)) };
    });
    return { replicas, size, work: (sampled) => (sampled ? some() : all()) };
  };
  const limited: MicroBatchSize | null =
    config.micro_batch_tokens === null ? null : { maxTokens: config.micro_batch_tokens };
  const ownRows = (replicas: number) => (config.replicas === null ? Math.ceil(rows / replicas) : rows);
  const countsOf = (replicas: number) => countsToTry(ownRows(replicas), ownRows(replicas) * rowTokens);
  const cutsWith = (replicas: number) =>
    (limited === null ? countsOf(replicas).map((count) => ({ count })) : [limited]).map((size) => cut(replicas, size));
  return {
    fixed: (devices) => cut(dealt, limited ?? { count: microBatchCount(rowTokens * rows, rows, kindOf(devices)) }),
    cuts: () => cutsWith(dealt),
    free: (devices) => replicaCounts(config.replicas, devices.length, rows).flatMap(cutsWith),
    near: async ({ replicas, size }) =>
      "count" in size
        ? countsNear(size.count, ownRows(replicas), ownRows(replicas) * rowTokens).map((count) =>
            cut(replicas, { count }),
          )
        : [],
  };
}

export function longestRow(rows: Dataset): number {
  let longest = 0;
  for (let row = 0; row < rows.size; row++) longest = Math.max(longest, rows.rowLength(row));
  return longest;
}

/** Rows of the greatest length, with every token a label: for a plan without a dataset. */
export function fullRowsWorkload(
  config: WorkSettings & Pick<Config, "max_length" | "per_device_train_batch_size" | "gradient_accumulation_steps">,
): Ways<Cut> {
  const { max_length: rowTokens } = config;
  const rows = config.per_device_train_batch_size * config.gradient_accumulation_steps;
  const cut = (replicas: number, ownRows: number, mostRows: number): Cut => {
    // As cutMicroBatches does: as few as may be, the largest as small as it can be.
    const microBatches = Math.ceil(ownRows / mostRows);
    const tokens = Math.ceil(ownRows / microBatches) * rowTokens;
    const meanTokens = (ownRows * rowTokens) / microBatches;
    const shape = { microBatches, tokens, labelTokens: tokens, meanTokens, meanLabelTokens: meanTokens, rowTokens };
    return { replicas, size: { maxTokens: tokens }, work: async () => trainingWork(config, shape) };
  };
  const limit =
    config.micro_batch_tokens === null ? null : Math.max(1, Math.floor(config.micro_batch_tokens / rowTokens));
  const ownRows = (replicas: number) => (config.replicas === null ? Math.ceil(rows / replicas) : rows);
  const countsOf = (own: number) => countsToTry(own, own * rowTokens);
  const cutsOfCounts = (replicas: number, counts: readonly number[]) => {
    const own = ownRows(replicas);
    return [...new Set(counts.map((count) => Math.ceil(own / count)))].map((perBatch) => cut(replicas, own, perBatch));
  };
  const cutsWith = (replicas: number) =>
    limit === null ? cutsOfCounts(replicas, countsOf(ownRows(replicas))) : [cut(replicas, ownRows(replicas), limit)];
  return {
    fixed: (devices) => {
      const count = microBatchCount(rows * rowTokens, rows, kindOf(devices));
      return cut(config.replicas ?? 1, rows, limit ?? Math.ceil(rows / count));
    },
    cuts: () => cutsWith(config.replicas ?? 1),
    free: (devices) => replicaCounts(config.replicas, devices.length, rows).flatMap(cutsWith),
    near: async ({ replicas, work }) => {
      if (limit !== null) return [];
      const own = ownRows(replicas);
      const { microBatches } = await work(true);
      const count = countsOf(own).findLast((one) => Math.ceil(own / Math.ceil(own / one)) === microBatches);
      return count === undefined ? [] : cutsOfCounts(replicas, countsNear(count, own, own * rowTokens));
    },
  };
}

/** Room that continuing sequences takes. */
export interface CacheNeeds {
  /** Sequences that have a place at a time. */
  readonly sequences: number;
  /** Tokens of all of them together. */
  readonly rows: number;
  /** Most new tokens of a round. */
  readonly roundTokens: number;
}

/** The same work on devices that hold a cache too, in which sequences are continued between steps. */
export function besideCache(workload: Workload, { sequences, rows }: Pick<CacheNeeds, "sequences" | "rows">): Workload {
  const beside = (cut: RoundCut): RoundCut => ({
    ...cut,
    work: async (sampled) => {
      const work = await cut.work(sampled);
      return {
        ...work,
        // A round has no more tokens than a micro-batch, so that nothing else changes; but a row of logits for each sequence.
        labelTokens: Math.max(work.labelTokens, sequences),
        cacheTokens: rows,
        cacheSequences: sequences,
      };
    },
  });
  return {
    ...workload,
    fixed: (devices) => beside(workload.fixed(devices)),
    cuts: () => workload.cuts().map(beside),
    free: (devices) => workload.free(devices).map(beside),
    near: async (cut) => (await workload.near(cut)).map(beside),
  };
}

/** Sequences through a key/value cache; nothing is kept for a backward pass. */
export function generationWorkload({ sequences, rows, roundTokens }: CacheNeeds): Workload {
  const work: Work = {
    microBatches: 1,
    tokens: roundTokens,
    labelTokens: sequences,
    meanTokens: roundTokens,
    meanLabelTokens: 1,
    rowTokens: Math.min(rows, roundTokens),
    schedule: "sequential",
    checkpointing: "none",
    cacheTokens: rows,
    cacheSequences: sequences,
    forwardOnly: true,
  };
  return passes(work);
}

/** Passes forward of at most so many tokens each. */
export function passesWorkload(tokens: number): Workload {
  return passes({
    microBatches: 1,
    tokens,
    labelTokens: 1,
    meanTokens: tokens,
    meanLabelTokens: 1,
    rowTokens: tokens,
    schedule: "sequential",
    checkpointing: "none",
    cacheTokens: 0,
    forwardOnly: true,
  });
}

/** One way alone, without training. */
function passes(work: Work): Workload {
  const only: RoundCut = { replicas: 1, parts: [], work: async () => work };
  return {
    trains: false,
    previous: null,
    fixed: () => only,
    cuts: () => [only],
    free: () => [only],
    near: async () => [],
  };
}

const CHECKPOINTING = { true: "all", false: "none", auto: "auto" } as const;

function trainingWork(config: WorkSettings, shape: BatchShape): Work {
  return {
    ...shape,
    schedule: config.schedule,
    checkpointing: CHECKPOINTING[`${config.gradient_checkpointing}`],
    cacheTokens: 0,
  };
}

function kindOf(devices: readonly Device[]): Device["kind"] {
  return devices.some((device) => device.kind === "cpu") ? "cpu" : "cuda";
}

/** Numbers of replicas that leave each a device and a row, for depths of the pipeline worth a try. */
function replicaCounts(asked: number | null, devices: number, rows: number): number[] {
  if (asked !== null) return [asked];
  const counts = stepsUpTo(devices).map((depth) => Math.min(rows, Math.floor(devices / depth)));
  return [...new Set(counts)];
}
