import type { Plan, PlanPrediction } from "../../plan/plan.ts";
import type { Speeds, Work } from "../../plan/request.ts";
import { buildSchedule, type SharedCores, type SimulatedStep, simulateStep } from "../../schedule/index.ts";

/** Steps with more forward passes than this are predicted by the closed form: simulating them would take too long for a plan. */
const MOST_SIMULATED = 8192;

/**
 * The plan with its step simulated: the instruction lists that the ranks will run, with the predicted times of segments and links. This
 * includes the stalls that the closed form leaves out.
 */
export function withSimulatedStep(plan: Plan, work: Work, speeds: Speeds): Plan {
  const { predicted } = plan;
  if (predicted === null || plan.segments.length < 2 || tooLong(plan, work)) return plan;
  const { stepTimeMs, bubble } = simulatedStep(plan, predicted, work, speeds);
  const tokens = (predicted.tokensPerSecond * predicted.stepTimeMs) / 1e3;
  return {
    ...plan,
    predicted: { ...predicted, stepTimeMs, bubble, tokensPerSecond: (tokens * 1e3) / stepTimeMs },
  };
}

/**
 * Milliseconds of a step whose ranks compute for the measured times (`computeMs` by rank; on shared cores, as if alone) with links as
 * predicted. Its difference from the predicted step is due to the devices' speed, the measured step's difference from it to schedule and
 * links. Null: the plan has no prediction, or a simulation would take too long.
 */
export function stepAtMeasuredCompute(
  plan: Plan,
  work: Work,
  speeds: Speeds,
  computeMs: readonly number[],
): number | null {
  const { predicted } = plan;
  if (predicted === null || tooLong(plan, work)) return null;
  const expected = predictedCompute(plan, work.microBatches);
  const steps = plan.replicas.map((ranks) => {
    const segments = predicted.segments.map((times, index) => {
      const rank = ranks[plan.segments[index]!.rank]!;
      const passes = expected.get(rank)! - predicted.updateMs;
      const factor = passes > 0 ? Math.max(0, computeMs[rank]! - predicted.updateMs) / passes : 1;
      return { ...times, forwardMs: times.forwardMs * factor, backwardMs: times.backwardMs * factor };
    });
    return simulatedStep(plan, { ...predicted, segments }, work, speeds).stepTimeMs;
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
  const segments = predicted.segments.map((times) => ({
    ...times,
    forwardMs: times.forwardMs * factor,
    backwardMs: times.backwardMs * factor,
    transferMs: times.transferMs * factor,
  }));
  if (tooLong(plan, work)) return (predicted.stepTimeMs * factor * work.microBatches) / planned.microBatches;
  return simulatedStep(plan, { ...predicted, segments }, work, speeds).stepTimeMs;
}

function tooLong(plan: Plan, work: Work): boolean {
  return plan.segments.length * work.microBatches > MOST_SIMULATED;
}

function simulatedStep(
  plan: Plan,
  predicted: PlanPrediction,
  work: Work,
  speeds: Speeds,
): { readonly stepTimeMs: number; readonly bubble: number } {
  const step = simulateSegments(plan, predicted, work, coresOf(plan, speeds));
  const stepTimeMs = step.stepTime * 1e3 + predicted.sumMs + predicted.updateMs;
  return { stepTimeMs, bubble: 1 - ((1 - step.bubble) * step.stepTime * 1e3) / stepTimeMs };
}

/** The first replica's share of the cores of crowded nodes; null: every rank has its own. */
function coresOf(plan: Plan, { devices, rates: { crowded } }: Speeds): SharedCores | null {
  if (crowded.size === 0) return null;
  const nodeOf = new Map(devices.map(({ id, node }) => [id, node]));
  const nodes = plan.devices.map(({ device }) => nodeOf.get(device)!);
  const used = plan.devices.filter(({ segments }) => segments.length > 0).map(({ rank }) => rank);
  const own = used.filter((rank) => plan.replicas[0]!.includes(rank));
  const on = (ranks: readonly number[], node: string) => ranks.filter((rank) => nodes[rank] === node).length;
  return {
    groupOf: (rank) => nodes[rank]!,
    fullSpeed: (node) => ((crowded.get(node) ?? Number.POSITIVE_INFINITY) * on(own, node)) / on(used, node),
  };
}

function simulateSegments(plan: Plan, predicted: PlanPrediction, work: Work, cores: SharedCores | null): SimulatedStep {
  const { segments } = plan;
  const lists = buildSchedule({
    segments,
    microBatches: work.microBatches,
    policy: work.schedule,
    needsBackward: (segment) => segments[segment]!.needsBackward,
  });
  const seconds = (of: "forwardMs" | "backwardMs") => (segment: number) => predicted.segments[segment]![of] / 1e3;
  const transfers = new Map<string, number>();
  segments.slice(1).forEach(({ rank }, index) => {
    const transfer = predicted.segments[index]!.transferMs / 1e3;
    for (const pair of [`${segments[index]!.rank}-${rank}`, `${rank}-${segments[index]!.rank}`]) {
      transfers.set(pair, Math.max(transfer, transfers.get(pair) ?? 0));
    }
  });
  return simulateStep(
    lists,
    { forward: seconds("forwardMs"), backward: seconds("backwardMs") },
    {
      // A message counts as one unit that takes the predicted time of its pair of ranks.
      latency: () => 0,
      messageBytes: () => 1,
      bytesPerSecond: (from, to) => 1 / (transfers.get(`${from}-${to}`) ?? 0),
      buffer: Number.POSITIVE_INFINITY,
    },
    cores,
  );
}

/** Milliseconds of compute a step, by rank. */
export function predictedCompute({ segments, replicas, predicted }: Plan, microBatches: number): Map<number, number> {
  const byRank = new Map<number, number>();
  if (predicted === null) return byRank;
  for (const ranks of replicas) {
    segments.forEach(({ rank }, index) => {
      const { forwardMs, backwardMs } = predicted.segments[index]!;
      const own = ranks[rank]!;
      byRank.set(own, (byRank.get(own) ?? predicted.updateMs) + microBatches * (forwardMs + backwardMs));
    });
  }
  return byRank;
}
