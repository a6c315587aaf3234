import { alignTable } from "../shown/table.ts";

interface Offer {
  readonly name: string;
  readonly plan: { readonly predicted: { readonly stepTimeMs: number; readonly bubble: number } | null } | null;
  readonly seconds: number | null;
  readonly cost: number | null;
  readonly meets: boolean;
}

const SHOWN = 12;

/** A table of sets of GPUs, which are given in order: the cheapest that meets the deadline first. */
export function formatRental(sets: readonly Offer[], steps: number, deadlineSeconds: number | null): string {
  const rows = sets.slice(0, SHOWN).map(({ name, plan, seconds, cost, meets }) => {
    if (plan?.predicted == null) return [name, "does not fit", "", "", "", ""];
    const late = deadlineSeconds === null ? "" : meets ? "in time" : "too late";
    const idle = `${(100 * plan.predicted.bubble).toFixed(1)} %`;
    return [name, `${plan.predicted.stepTimeMs.toFixed(1)} ms`, idle, formatTime(seconds!), cost!.toFixed(2), late];
  });
  const rest = sets.length > SHOWN ? [`and ${sets.length - SHOWN} sets that are dearer, later or too small`] : [];
  const best = sets[0];
  const answer =
    best === undefined || !best.meets
      ? "no set is done in time"
      : `cheapest${deadlineSeconds === null ? "" : ` within ${formatTime(deadlineSeconds)}`}: ${best.name}, ${formatTime(best.seconds!)} for ${steps} steps, ${best.cost!.toFixed(2)}`;
  return [alignTable([["GPUs", "step", "idle", "run", "cost", ""], ...rows]), ...rest, answer].join("\n");
}

export function rentalJson(sets: readonly Offer[]): Record<string, unknown>[] {
  return sets.map(({ name, plan, seconds, cost, meets }) => ({
    ...{ devices: name, fits: plan !== null, seconds, cost, meets },
    ...{ step_time_ms: plan?.predicted?.stepTimeMs ?? null, bubble: plan?.predicted?.bubble ?? null },
  }));
}

/** "3 h 20 min", "45 s" */
export function formatTime(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}
