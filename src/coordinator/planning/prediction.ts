import type { Plan, PlanPrediction } from "../../plan/plan.ts";
import type { Speeds, Work } from "../../plan/request.ts";
import { linkRate } from "../../plan/time/rates.ts";
import { passesTime, type StepShape, sharedCores } from "../../plan/time/step-time.ts";
import { type SharedCores, turnsOf } from "../../schedule/index.ts";

/**
 * Milliseconds of a step whose ranks compute for as long as they were measured to (`computeMs` by rank, on shared cores as
 * if alone), links as predicted: what sets it apart from the predicted step is the devices' speed, what sets the measured step
 * apart from it is the schedule and the links. Null: the plan predicts nothing.
 */
export function stepAtMeasuredCompute(
  plan: Plan,
  work: Work,
  speeds: Speeds,
  computeMs: readonly number[],
): number | null {
  const { predicted } = plan;
  if (predicted === null) return null;
  const expected = predictedCompute(plan, work.microBatches);
  const steps = plan.replicas.map((ranks) => {
    const factorOf = (position: number) => {
      const rank = ranks[position]!;
      const passes = expected.get(rank)! - predicted.updateMs;
      return passes > 0 ? Math.max(0, computeMs[rank]! - predicted.updateMs) / passes : 1;
    };
    const segments = predicted.segments.map((times, index) => {
      const factors = plan.segments[index]!.ranks.map(factorOf);
      const at = (values: readonly number[]) => values.map((value, turn) => value * factors[turn]!);
      return { ...times, forwardMs: at(times.forwardMs), backwardMs: at(times.backwardMs) };
    });
    return stepOf(plan, { ...predicted, segments }, work, speeds);
  });
  return Math.max(...steps);
}

/**
 * Milliseconds of a step that does `work` under a plan made for `planned`: micro-batches of another mean size take as much longer or
 * shorter. Null: the plan predicts nothing.
 */
export function predictedRoundMs(
  plan: Plan,
  { work, planned }: { readonly work: Work; readonly planned: Work },
  speeds: Speeds,
): number | null {
  const { predicted } = plan;
  if (predicted === null) return null;
  const factor = work.meanTokens / planned.meanTokens;
  const scaled = (values: readonly number[]) => values.map((value) => value * factor);
  const segments = predicted.segments.map((times) => ({
    ...times,
    forwardMs: scaled(times.forwardMs),
    backwardMs: scaled(times.backwardMs),
  }));
  return stepOf(plan, { ...predicted, segments, messageBytes: predicted.messageBytes * factor }, work, speeds);
}

/** Milliseconds of a step with these times. */
function stepOf(plan: Plan, predicted: PlanPrediction, work: Work, speeds: Speeds): number {
  const devices = [...speeds.devices].sort((a, b) => a.id - b.id);
  const [first] = plan.replicas;
  const seconds = (values: readonly number[]) => values.map((ms) => ms / 1e3);
  const shape: StepShape = {
    segments: plan.segments.map(({ ranks, needsBackward }, index) => ({
      ranks,
      needsBackward,
      forward: seconds(predicted.segments[index]!.forwardMs),
      backward: seconds(predicted.segments[index]!.backwardMs),
    })),
    microBatches: work.microBatches,
    policy: plan.schedule,
    messageBytes: predicted.messageBytes,
    linkOf: (from, to) => linkRate(devices[first![from]!]!, devices[first![to]!]!, speeds.rates),
    cores: coresOf(plan, speeds),
  };
  return passesTime(shape).seconds * 1e3 + predicted.sumMs + predicted.updateMs;
}

/** The first replica's share of the cores of crowded nodes. */
function coresOf(plan: Plan, { devices, rates }: Speeds): SharedCores | null {
  const nodeOf = new Map(devices.map(({ id, node }) => [id, node]));
  const nodes = plan.devices.map(({ device }) => nodeOf.get(device)!);
  const used = plan.devices.filter(({ segments }) => segments.length > 0).map(({ rank }) => rank);
  const own = used.filter((rank) => plan.replicas[0]!.includes(rank));
  const on = (ranks: readonly number[], node: string) => ranks.filter((rank) => nodes[rank] === node).length;
  return sharedCores(nodes, rates, (node) => on(own, node) / on(used, node));
}

/** Milliseconds of compute a step, by rank. */
export function predictedCompute({ segments, replicas, predicted }: Plan, microBatches: number): Map<number, number> {
  const byRank = new Map<number, number>();
  if (predicted === null) return byRank;
  for (const ranks of replicas) {
    for (const [index, segment] of segments.entries()) {
      const { forwardMs, backwardMs } = predicted.segments[index]!;
      for (const [turn, position] of segment.ranks.entries()) {
        const own = ranks[position]!;
        const passes = turnsOf(segment, position, microBatches) * (forwardMs[turn]! + backwardMs[turn]!);
        byRank.set(own, (byRank.get(own) ?? predicted.updateMs) + passes);
      }
    }
  }
  return byRank;
}
