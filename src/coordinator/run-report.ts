import { formatBytes } from "../common/bytes.ts";
import type { Plan } from "../plan/plan.ts";
import type { Pipeline } from "./pipeline.ts";
import { predictedCompute } from "./prediction.ts";

/** What the plan predicted beside what was measured: a line a rank, then the step. */
export function predictedBesideMeasured(plan: Plan, pipeline: Pipeline, microBatches: number): string[] {
  const compute = predictedCompute(plan, microBatches);
  const lines = plan.devices.flatMap(({ rank, memory }) => {
    const measured = pipeline.memory[rank];
    const times = pipeline.times[rank];
    if (measured == null || times === undefined) return [];
    const arena = memory.activations + memory.workspace;
    return [
      `rank ${rank}: computes ${(times.computeMs / times.steps).toFixed(1)} ms a step (predicted ${(compute.get(rank) ?? 0).toFixed(1)}), ` +
        `weights ${formatBytes(measured.weightBytes)} (predicted ${formatBytes(memory.weights)}), ` +
        `activations and workspace ${formatBytes(measured.arenaPeakBytes)} (predicted ${formatBytes(arena)})`,
    ];
  });
  const longest = Math.max(...pipeline.times.map(({ totalMs, steps }) => totalMs / steps));
  if (plan.predicted === null || !Number.isFinite(longest)) return lines;
  return [...lines, `step: ${longest.toFixed(1)} ms (predicted ${plan.predicted.stepTimeMs.toFixed(1)})`];
}
