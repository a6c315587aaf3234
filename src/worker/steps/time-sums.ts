import type { StepTimes__Output } from "../../rpc/generated/pipelora/v1/StepTimes.ts";

const WARM_UP_STEPS = 2;
const NO_TIMES: StepTimes__Output = {
  totalMs: 0,
  computeMs: 0,
  waitMs: 0,
  sentBytes: 0,
  reduceMs: 0,
  linkMs: 0,
  processorMs: 0,
};
const KEYS = Object.keys(NO_TIMES) as (keyof StepTimes__Output)[];

/** A rank's times, added up over all steps but the first two, in which caches and connections warm up. */
export class TimeSums {
  readonly sums: StepTimes__Output = { ...NO_TIMES };
  #seen = 0;

  add(step: StepTimes__Output): void {
    this.#seen++;
    if (this.#seen <= WARM_UP_STEPS) return;
    for (const key of KEYS) this.sums[key] += step[key];
  }

  get steps(): number {
    return Math.max(0, this.#seen - WARM_UP_STEPS);
  }
}
