import type { StepTimes__Output } from "../rpc/generated/pipelora/v1/StepTimes.ts";

const WARM_UP_STEPS = 2;

/** A rank's times, summed over the steps since the first two, in which caches and connections warm up. */
export class TimeSums {
  #seen = 0;
  #sums: StepTimes__Output = {
    totalMs: 0,
    computeMs: 0,
    waitMs: 0,
    sentBytes: 0,
    reduceMs: 0,
    linkMs: 0,
    processorMs: 0,
  };

  add(step: StepTimes__Output): void {
    this.#seen++;
    if (this.#seen <= WARM_UP_STEPS) return;
    const { totalMs, computeMs, waitMs, sentBytes, reduceMs, linkMs, processorMs } = this.#sums;
    this.#sums = {
      totalMs: totalMs + step.totalMs,
      computeMs: computeMs + step.computeMs,
      waitMs: waitMs + step.waitMs,
      sentBytes: sentBytes + step.sentBytes,
      reduceMs: reduceMs + step.reduceMs,
      linkMs: linkMs + step.linkMs,
      processorMs: processorMs + step.processorMs,
    };
  }

  get steps(): number {
    return Math.max(0, this.#seen - WARM_UP_STEPS);
  }

  get sums(): StepTimes__Output {
    return this.#sums;
  }
}
