import { PipeloraError } from "../common/errors.ts";
import type { Device } from "./devices.ts";
import { makePlan, type Plan } from "./plan.ts";
import type { PlanRequest, Work } from "./request.ts";

interface CountPolicy {
  /** Tokens at which a product runs near its full rate. */
  readonly tokens: number;
  readonly fewest: number;
  readonly most: number;
}

/** A pipeline of p devices idles (p − 1) / (m + p − 1) of a step: m should be several, and its products still large. */
const POLICIES: Readonly<Record<Device["kind"], CountPolicy>> = {
  cpu: { tokens: 128, fewest: 4, most: 16 },
  cuda: { tokens: 1024, fewest: 1, most: 32 },
};

/**
 * Micro-batches of a step where the user sets none. A function of the step's size and the kind of device, never of the placement: runs
 * over 1, 2 or 4 devices cut alike, add up alike and give the same bits.
 */
export function microBatchCount(stepTokens: number, rows: number, kind: Device["kind"]): number {
  const { tokens, fewest, most } = POLICIES[kind];
  return Math.max(1, Math.min(rows, most, Math.max(fewest, Math.round(stepTokens / tokens))));
}

export interface FittedPlan {
  readonly plan: Plan;
  /** The one of the works that the plan is for. */
  readonly work: Work;
}

/**
 * The plan with the shortest predicted step among ways to cut it, for a user who asks for it: the cut then depends on the
 * placement, and runs over other devices may differ in the last bits. Ways that do not fit are passed over; the error of the last
 * is thrown if none does. Errors as makePlan's.
 */
export function planFastestWork(request: Omit<PlanRequest, "work">, works: readonly Work[]): FittedPlan {
  let best: FittedPlan | null = null;
  let failure: unknown = new PipeloraError("PL_INTERNAL", "no way to cut the step was given");
  for (const work of works) {
    try {
      const plan = makePlan({ ...request, work });
      if (best === null || tokenTime(plan) < tokenTime(best.plan)) best = { plan, work };
    } catch (error) {
      if (!(error instanceof PipeloraError) || error.code !== "PL_PLACEMENT_INFEASIBLE") throw error;
      failure = error;
    }
  }
  if (best === null) throw failure;
  return best;
}

/** Seconds a token: ways to cut may differ in how much their largest micro-batches overstate the step. */
function tokenTime(plan: Plan): number {
  return plan.predicted === null ? Number.POSITIVE_INFINITY : 1 / plan.predicted.tokensPerSecond;
}
