import { bytesOf } from "../../common/bytes.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { AdapterStep__Output } from "../../rpc/generated/pipelora/v1/AdapterStep.ts";
import type { AdapterSums__Output } from "../../rpc/generated/pipelora/v1/AdapterSums.ts";
import type { MicroBatches__Output } from "../../rpc/generated/pipelora/v1/MicroBatches.ts";
import type { Segment__Output } from "../../rpc/generated/pipelora/v1/Segment.ts";
import type { Update__Output } from "../../rpc/generated/pipelora/v1/Update.ts";
import type { UpdateGroup__Output } from "../../rpc/generated/pipelora/v1/UpdateGroup.ts";
import type { RankLinks } from "../links.ts";
import type { PreparedAdapter, PreparedRank } from "../prepare.ts";
import { sumGradients } from "./gradient-sum.ts";
import { unpackMicroBatches } from "./micro-batches.ts";
import { sumShared } from "./shared-matrix.ts";
import { runInstructions, type StepPart, type StepTotals } from "./step-runner.ts";
import { type Tell, tellState } from "./tell-state.ts";
import type { StepTrace } from "./trace.ts";

export interface Round {
  readonly rank: number;
  /** Its name in tensor keys. */
  readonly name: string;
  readonly parts: readonly AdapterStep__Output[];
  readonly trace: StepTrace | null;
  /** Receives the trained values as they are before these steps; null: nothing does. */
  readonly tell: Tell | null;
}

/**
 * This rank's part in a step of each of these adapters. Returns its own sums, part by part. Errors: PL_PROTOCOL_MISMATCH, PL_LINK_FAILED,
 * those of the engine.
 */
export async function runRound(
  prepared: PreparedRank,
  links: RankLinks,
  { rank, name, parts, trace, tell }: Round,
): Promise<{ readonly parts: AdapterSums__Output[]; readonly totals: StepTotals }> {
  const { engine, replicas, segments } = prepared;
  const squares: Float64Array[] = [];
  const measure = async (index: number) => {
    const { adapter } = parts[index]!;
    const { places } = preparedAdapter(prepared, adapter);
    const all = places.length === 0 ? null : await engine.gradSquares(adapter);
    squares[index] = Float64Array.from(places, (place) => all![place]!);
  };
  const begin = async (previous: Update__Output | null, adapter: number) => {
    const updated = previous === null ? null : applyUpdate(prepared, previous, adapter);
    const { names } = preparedAdapter(prepared, adapter);
    await Promise.all([updated, tell === null ? null : tellState(engine, { adapter, names }, tell)]);
  };
  // Gradients that are added up with other ranks' are measured after that.
  const addsUp = (adapter: number) => replicas !== null || preparedAdapter(prepared, adapter).shared !== null;
  const steps = parts.map(({ adapter, step, microBatches, previous, lossScale }, index): StepPart => {
    const { regularisation } = preparedAdapter(prepared, adapter);
    return {
      batches: unpackMicroBatches(ownPart(given(microBatches, "micro-batches"), segments, rank), {
        ...{ step, training: true, lossScale },
        ...regularisation,
      }),
      before: previous === null && tell === null ? null : () => begin(previous, adapter),
      after: addsUp(adapter) ? null : () => measure(index),
    };
  });
  const count = steps.reduce((sum, { batches }) => sum + batches.length, 0);
  const instructions = prepared.instructions(count, "train");
  const totals = await runInstructions(prepared, links, { name, instructions, parts: steps, trace });
  for (const [index, { adapter }] of parts.entries()) {
    if (!addsUp(adapter)) continue;
    const { groups, shared } = preparedAdapter(prepared, adapter);
    const began = performance.now();
    if (shared !== null)
      totals.sentBytes += await sumShared(engine, links, shared, { self: rank, step: name, adapter });
    if (replicas !== null && groups.length > 0) {
      totals.sentBytes += await sumGradients(engine, links, replicas, { name: `${name}/${adapter}`, adapter });
    }
    totals.reduceMs += performance.now() - began;
    trace?.add("reduce", began);
    const ended = performance.now();
    await measure(index);
    trace?.add("norm", ended);
  }
  return {
    parts: parts.map(({ adapter }, index) => ({
      losses: totals.losses[index]!,
      matrixIds: bytesOf(preparedAdapter(prepared, adapter).matrixIds),
      gradSquares: bytesOf(squares[index]!),
    })),
    totals,
  };
}

/** The adapter with this number. Errors: PL_PROTOCOL_MISMATCH if there is none. */
export function preparedAdapter({ adapters }: PreparedRank, number: number): PreparedAdapter {
  const found = adapters[number];
  if (found === undefined) {
    throw new PipeloraError("PL_PROTOCOL_MISMATCH", `a request is of adapter ${number}; there are ${adapters.length}`);
  }
  return found;
}

/** Queues an adapter's update on this rank, which also clears its gradients. Errors: PL_PROTOCOL_MISMATCH. */
export async function applyUpdate(
  prepared: PreparedRank,
  { skip, groups: given, ...update }: Update__Output,
  adapter: number,
): Promise<void> {
  const { engine } = prepared;
  const { groups } = preparedAdapter(prepared, adapter);
  if (groups.length === 0) return;
  if (skip) return engine.zeroGrad(adapter);
  const of = (value: (group: UpdateGroup__Output) => number) =>
    Float64Array.from(groups, (group) => {
      const found = given[group];
      if (found === undefined) throw new PipeloraError("PL_PROTOCOL_MISMATCH", `an Update has no group ${group}`);
      return value(found);
    });
  const learningRates = of(({ learningRate }) => learningRate);
  const weightDecays = of(({ weightDecay }) => weightDecay);
  await engine.optimizerStep({ ...update, learningRates, weightDecays }, adapter);
}

/** A required part of a request. Errors: PL_PROTOCOL_MISMATCH if it is missing. */
export function given<T>(part: T | null, what: string): T {
  if (part === null) throw new PipeloraError("PL_PROTOCOL_MISMATCH", `a request came without ${what}`);
  return part;
}

/**
 * The parts of a pipeline's micro-batches that this rank needs: tokens in the first segment, labels and weights in the last if it
 * computes their losses.
 */
function ownPart(all: MicroBatches__Output, segments: readonly Segment__Output[], rank: number): MicroBatches__Output {
  const none = Buffer.alloc(0);
  const isFirst = segments[0]?.ranks.includes(rank);
  const isLast = segments.at(-1)?.ranks.includes(rank);
  return {
    ...all,
    tokens: isFirst ? all.tokens : none,
    targets: isLast ? all.targets : none,
    weights: isLast ? all.weights : none,
  };
}
