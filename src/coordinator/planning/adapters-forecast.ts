import { matrixElements } from "../../models/kinds/named-matrix.ts";
import { LORA_BYTES_PER_PARAMETER } from "../../plan/memory/held-sizes.ts";
import type { Work } from "../../plan/request.ts";
import type { ModelSetup } from "./model-setup.ts";
import type { ChosenPlan } from "./planning.ts";
import { predictedRoundMs } from "./prediction.ts";
import { roundWork } from "./workload.ts";

/** An adapter of a run of several, and its plan alone. */
export interface AdapterAlone {
  readonly name: string;
  readonly setup: ModelSetup;
  readonly chosen: ChosenPlan;
  /** Null: not known. */
  readonly steps: number | null;
}

/** What several adapters over one base take, beside a run of each. */
export interface AdaptersForecast {
  readonly adapters: readonly {
    readonly name: string;
    readonly trained: number;
    /** Its matrices, their gradients and moments. */
    readonly bytes: number;
    readonly steps: number | null;
    readonly stepMsAlone: number | null;
    /** Share of a step of this adapter alone in which devices are idle. */
    readonly bubbleAlone: number | null;
  }[];
  /** Bytes over all devices: of one run with all adapters, of the largest run alone, of all runs side by side. */
  readonly memory: { readonly together: number; readonly largestAlone: number; readonly sumAlone: number };
  /** Time of a step of every adapter: in one round, and one after the other; null without predicted times. */
  readonly roundMs: number | null;
  readonly stepsApartMs: number | null;
  readonly bubble: number | null;
  /** The whole training, without loading; null where steps are not known. */
  readonly togetherMs: number | null;
  readonly apartMs: number | null;
}

export async function forecast(all: ChosenPlan, alone: readonly AdapterAlone[]): Promise<AdaptersForecast> {
  const works = await Promise.all(all.cut.parts.map((part) => part.work(false)));
  const whole = roundWork(works);
  const roundOf = (own: readonly Work[]) =>
    predictedRoundMs(all.plan, { work: roundWork(own), planned: whole }, all.speeds);
  const steps = alone.map((one) => one.steps);
  const stepMs = alone.map(({ chosen }) => chosen.plan.predicted?.stepTimeMs ?? null);
  const totals = alone.map(({ chosen }) => memoryOf(chosen));
  return {
    adapters: alone.map(({ name, setup, chosen, steps: count }, index) => {
      const trained = matrixElements(setup.lora!.matrices);
      return {
        ...{ name, trained, bytes: trained * LORA_BYTES_PER_PARAMETER, steps: count },
        ...{ stepMsAlone: stepMs[index]!, bubbleAlone: chosen.plan.predicted?.bubble ?? null },
      };
    }),
    memory: {
      together: memoryOf(all),
      largestAlone: Math.max(...totals),
      sumAlone: totals.reduce((sum, bytes) => sum + bytes, 0),
    },
    roundMs: roundOf(works),
    stepsApartMs: sumOf(stepMs),
    bubble: all.plan.predicted?.bubble ?? null,
    togetherMs: togetherMs(works, steps, roundOf),
    apartMs: sumOf(stepMs.map((ms, index) => (ms === null || steps[index] === null ? null : ms * steps[index]!))),
  };
}

function memoryOf({ plan }: ChosenPlan): number {
  return plan.devices.reduce((sum, { memory }) => sum + memory.total, 0);
}

/** Rounds grow cheaper as adapters end. */
function togetherMs(
  works: readonly Work[],
  steps: readonly (number | null)[],
  roundOf: (works: readonly Work[]) => number | null,
): number | null {
  if (steps.some((count) => count === null)) return null;
  const ends = [...new Set(steps as number[])].sort((a, b) => a - b);
  return sumOf(
    ends.map((end, index) => {
      const rounds = end - (ends[index - 1] ?? 0);
      const ms = roundOf(works.filter((_, adapter) => steps[adapter]! >= end));
      return ms === null ? null : ms * rounds;
    }),
  );
}

/** Null where any is not known. */
function sumOf(values: readonly (number | null)[]): number | null {
  return values.reduce<number | null>((sum, value) => (sum === null || value === null ? null : sum + value), 0);
}
