import { formatBytes } from "../../common/bytes.ts";
import { alignTable } from "../../plan/shown/table.ts";
import type { AdaptersForecast } from "./adapters-forecast.ts";

/** For people: a line an adapter, then memory and time of all beside a run of each. */
export function formatForecast(of: AdaptersForecast): string {
  const { adapters, memory, roundMs, stepsApartMs, togetherMs, apartMs } = of;
  const table = alignTable([
    ["adapter", "trained", "with its state", "steps", "step alone", "bubble alone"],
    ...adapters.map(({ name, trained, bytes, steps, stepMsAlone, bubbleAlone }) => [
      name,
      String(trained),
      formatBytes(bytes),
      steps === null ? "" : String(steps),
      stepMsAlone === null ? "" : `${stepMsAlone.toFixed(1)} ms`,
      bubbleAlone === null ? "" : percent(bubbleAlone),
    ]),
  ]);
  const lines = [
    `memory of all devices: ${formatBytes(memory.together)} for ${adapters.length} adapters over one base; ${formatBytes(memory.largestAlone)} for the largest alone, ${formatBytes(memory.sumAlone)} for as many runs beside each other`,
  ];
  if (roundMs !== null && stepsApartMs !== null) {
    const bubble = of.bubble === null ? "" : `, ${percent(of.bubble)} of it bubbles`;
    lines.push(
      `a step of each: ${roundMs.toFixed(1)} ms in one round${bubble}; ${stepsApartMs.toFixed(1)} ms one after the other: ${gain(stepsApartMs, roundMs)}`,
    );
  }
  if (togetherMs !== null && apartMs !== null) {
    lines.push(
      `all steps: ${(togetherMs / 1e3).toFixed(1)} s together, ${(apartMs / 1e3).toFixed(1)} s in runs after each other (without loading): ${gain(apartMs, togetherMs)}`,
    );
  }
  return `${table}\n${lines.join("\n")}`;
}

/** The same for machines. */
export function forecastJson(of: AdaptersForecast): object {
  const { adapters, memory, roundMs, stepsApartMs, bubble, togetherMs, apartMs } = of;
  return {
    adapters: adapters.map(({ name, trained, bytes, steps, stepMsAlone, bubbleAlone }) => ({
      ...{ name, trained, bytes, steps, step_ms_alone: stepMsAlone, bubble_alone: bubbleAlone },
    })),
    memory: { together: memory.together, largest_alone: memory.largestAlone, sum_alone: memory.sumAlone },
    ...{ round_ms: roundMs, steps_apart_ms: stepsApartMs, bubble, together_ms: togetherMs, apart_ms: apartMs },
    gain: togetherMs === null || apartMs === null ? null : apartMs / togetherMs,
  };
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

function gain(apart: number, together: number): string {
  return `${(apart / together).toFixed(2)} times as fast`;
}
