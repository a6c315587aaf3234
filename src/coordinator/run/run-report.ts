import { formatBytes } from "../../common/bytes.ts";
import type { DeviceMemory } from "../../plan/memory.ts";
import { hostRoomBytes } from "../../plan/offload.ts";
import type { Plan } from "../../plan/plan.ts";
import type { Speeds, Work } from "../../plan/request.ts";
import type { MemoryReport__Output } from "../../rpc/generated/pipelora/v1/MemoryReport.ts";
import type { RankReport__Output } from "../../rpc/generated/pipelora/v1/RankReport.ts";
import { predictedCompute, stepAtMeasuredCompute } from "../planning/prediction.ts";

export interface Measured {
  /** [rank] */
  readonly reports: readonly RankReport__Output[];
  readonly evaluationSeconds: readonly number[];
}

/** The plan's predictions and the measurements: as text, a line for each rank and then the step, and as an object. */
export function predictedBesideMeasured(
  plan: Plan,
  { reports, evaluationSeconds }: Measured,
  work: Work,
  speeds: Speeds,
): { text: string; value: object } {
  const compute = predictedCompute(plan, work.microBatches);
  const ranks = plan.devices.flatMap(({ rank, memory }) => {
    const measured = reports[rank]!.memory!;
    const { steps } = reports[rank]!;
    const times = steps === 0 ? null : reports[rank]!.times!;
    return [
      {
        rank,
        compute_ms: times === null ? null : times.computeMs / steps,
        predicted_compute_ms: compute.get(rank) ?? 0,
        // Processor time of each thread: what the step would take on cores of its own.
        processor_ms: times === null ? null : times.processorMs / steps,
        wait_ms: times === null ? null : times.waitMs / steps,
        link_ms: times === null ? null : times.linkMs / steps,
        sent_bytes: times === null ? null : times.sentBytes / steps,
        weight_bytes: measured.weightBytes,
        predicted_weight_bytes: memory.weights + memory.weightCache,
        lora_bytes: measured.loraBytes,
        cache_bytes: measured.cacheBytes,
        arena_peak_bytes: measured.arenaPeakBytes,
        predicted_arena_bytes: memory.activations + memory.workspace,
        host_bytes: measured.hostBytes,
        predicted_host_bytes: memory.hostWeights + hostRoomBytes(memory),
        device: deviceMemory(measured, memory),
      },
    ];
  });
  const lines = ranks.map((own) => {
    const { device } = own;
    const all =
      device === null
        ? ""
        : `, all of the device's memory ${formatBytes(device.peak_bytes)} (predicted ${formatBytes(device.predicted_bytes)}), ` +
          `${formatBytes(device.context_bytes)} of it the driver's`;
    const time =
      own.compute_ms === null
        ? ""
        : `computes ${own.compute_ms.toFixed(1)} ms a step (predicted ${own.predicted_compute_ms.toFixed(1)}), ${linkText(own)}`;
    const host = own.host_bytes === 0 ? "" : `, of the host's ${formatBytes(own.host_bytes)}`;
    return (
      `rank ${own.rank}: ${time}weights ${formatBytes(own.weight_bytes)} (predicted ${formatBytes(own.predicted_weight_bytes)}), ` +
      `activations and workspace ${formatBytes(own.arena_peak_bytes)} (predicted ${formatBytes(own.predicted_arena_bytes)})${all}${host}`
    );
  });
  const steps = reports.flatMap(({ steps: count, times }) => (count === 0 ? [] : [times!.totalMs / count]));
  const step = steps.length === 0 ? null : Math.max(...steps);
  const predicted = plan.predicted?.stepTimeMs ?? null;
  const simulated = step === null ? null : stepAtMeasuredCompute(plan, work, speeds, measuredCompute(reports, speeds));
  if (step !== null && predicted !== null) {
    const also = simulated === null ? "" : `; ${simulated.toFixed(1)} for ranks as fast as they were`;
    lines.push(`step: ${step.toFixed(1)} ms (predicted ${predicted.toFixed(1)}${also})`);
  }
  const evaluation = {
    evaluation_ms: evaluationSeconds.length === 0 ? null : 1e3 * mean(evaluationSeconds),
    predicted_evaluation_ms: plan.predicted?.evaluationMs ?? null,
  };
  if (evaluation.evaluation_ms !== null && evaluation.predicted_evaluation_ms !== null) {
    lines.push(
      `evaluation: ${evaluation.evaluation_ms.toFixed(1)} ms (predicted ${evaluation.predicted_evaluation_ms.toFixed(1)})`,
    );
  }
  return {
    text: lines.join("\n"),
    value: { ranks, step_ms: step, predicted_step_ms: predicted, simulated_step_ms: simulated, ...evaluation },
  };
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Milliseconds of compute of each rank in a step. Ranks that share cores count as if each were alone on them. */
function measuredCompute(reports: readonly RankReport__Output[], { devices, rates }: Speeds): number[] {
  return reports.map(({ steps, times }, rank) => {
    if (steps === 0) return 0;
    const { kind, node } = devices[rank]!;
    return (kind === "cpu" && rates.crowded.has(node) ? times!.processorMs : times!.computeMs) / steps;
  });
}

/**
 * This rank's peak memory on its GPU, with the used part of its arena; null on CPUs, and if it is unknown. It is the decrease of the GPU's free
 * memory since before the rank's first use of it, so what other processes have allocated since is included.
 */
function deviceMemory(
  { arenaBytes, arenaPeakBytes, allocatedBytes, deviceBytes }: MemoryReport__Output,
  { total }: DeviceMemory,
): Record<"peak_bytes" | "predicted_bytes" | "allocated_bytes" | "context_bytes", number> | null {
  if (deviceBytes === 0) return null;
  return {
    peak_bytes: deviceBytes - arenaBytes + arenaPeakBytes,
    predicted_bytes: total,
    allocated_bytes: allocatedBytes,
    context_bytes: deviceBytes - allocatedBytes,
  };
}

/** For a rank with peers: how long its tensors took on links, and how long it waited for theirs. */
function linkText({
  wait_ms,
  link_ms,
  sent_bytes,
}: Record<"wait_ms" | "link_ms" | "sent_bytes", number | null>): string {
  if (wait_ms === null || link_ms === null || sent_bytes === null || link_ms === 0) return "";
  return `moves tensors for ${link_ms.toFixed(1)} ms beside that, sends ${formatBytes(sent_bytes)} of them and waits ${wait_ms.toFixed(1)} ms for peers, `;
}
