import { PipeloraError } from "../common/errors.ts";
import type { Device } from "./devices.ts";
import { makePlan, type Plan } from "./plan.ts";
import type { PlanRequest, Work } from "./request.ts";

/**
 * Most tokens of a micro-batch where the user sets none. Large enough that a product runs near its full rate, small
 * enough that a step's rows make several: a pipeline of p devices idles (p − 1) / (m + p − 1).
 */
export const DEFAULT_MICRO_BATCH_TOKENS: Readonly<Record<Device["kind"], number>> = { cpu: 128, cuda: 1024 };

/**
 * Cuts a step's rows into micro-batches: runs of consecutive rows, as few as keep each within `mostTokens` (a longer row
 * stands alone), then as even as that number allows. Depends on nothing but the rows and `mostTokens`, so that the same step is cut the
 * same way, and its sums are made in the same order, whatever the placement. Returns row numbers a micro-batch.
 */
export function cutRows(rowTokens: readonly number[], mostTokens: number): number[][] {
  if (rowTokens.length === 0) return [];
  const rows = rowTokens.length;
  const longest = Math.max(...rowTokens);
  const count = partsNeeded(rowTokens, Math.max(mostTokens, longest))[0]!;
  let low = longest;
  let high = Math.max(mostTokens, longest);
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (partsNeeded(rowTokens, middle)[0]! <= count) high = middle;
    else low = middle + 1;
  }
  const needed = partsNeeded(rowTokens, low);
  const parts: number[][] = [];
  let left = rowTokens.reduce((sum, tokens) => sum + tokens, 0);
  for (let row = 0; row < rows; ) {
    const after = count - parts.length - 1;
    const fair = left / (after + 1);
    const part: number[] = [];
    let tokens = 0;
    while (row < rows && tokens + rowTokens[row]! <= low) {
      const next = rowTokens[row]!;
      const restFits = needed[row]! <= after && rows - row >= after;
      if (part.length > 0 && restFits && tokens + next / 2 > fair) break;
      if (part.length > 0 && rows - row <= after) break;
      part.push(row++);
      tokens += next;
    }
    left -= tokens;
    parts.push(part);
  }
  return parts;
}

/** Fewest parts of at most `most` tokens that the rows from each on need; one more entry, 0, for none. */
function partsNeeded(rowTokens: readonly number[], most: number): number[] {
  const needed = new Array<number>(rowTokens.length + 1).fill(0);
  let end = rowTokens.length;
  let tokens = 0;
  for (let row = rowTokens.length - 1; row >= 0; row--) {
    tokens += rowTokens[row]!;
    while (tokens > most && end > row + 1) tokens -= rowTokens[--end]!;
    needed[row] = 1 + needed[end]!;
  }
  return needed;
}

export interface StepRows {
  /** Tokens of each row of a step, in order. */
  readonly rowTokens: readonly number[];
  /** Label tokens of each; null: every token may carry a label. */
  readonly labelTokens: readonly number[] | null;
}

/** Rows of a step before any data is read: every row as long as it may be. */
export function longestRows(rows: number, maxLength: number): StepRows {
  return { rowTokens: new Array<number>(rows).fill(maxLength), labelTokens: null };
}

/** What a step of these rows asks of memory and time when cut by cutRows. */
export function workOf(
  { rowTokens, labelTokens }: StepRows,
  mostTokens: number,
  settings: Pick<Work, "schedule" | "checkpointing">,
): Work {
  const parts = cutRows(rowTokens, mostTokens);
  if (parts.length === 0) throw new PipeloraError("PL_INTERNAL", "a step has no rows");
  const most = (values: readonly number[]) =>
    Math.max(...parts.map((part) => part.reduce((sum, row) => sum + values[row]!, 0)));
  return {
    ...settings,
    microBatches: parts.length,
    tokens: most(rowTokens),
    labelTokens: most(labelTokens ?? rowTokens),
    rowTokens: Math.round(rowTokens.reduce((sum, tokens) => sum + tokens, 0) / rowTokens.length),
    cacheTokens: 0,
  };
}

export interface FittedPlan {
  readonly plan: Plan;
  /** Most tokens of a micro-batch that the plan was made for. */
  readonly mostTokens: number;
}

/**
 * The plan with the size of micro-batch that makes the shortest predicted step within the budgets. This size depends on the placement:
 * runs over other devices may add up their gradients in another order and differ in the last bits. Errors as makePlan's.
 */
export function planFastestMicroBatches(
  request: Omit<PlanRequest, "work">,
  rows: StepRows,
  settings: Pick<Work, "schedule" | "checkpointing">,
): FittedPlan {
  const total = rows.rowTokens.reduce((sum, tokens) => sum + tokens, 0);
  const longest = Math.max(...rows.rowTokens);
  let best: FittedPlan | null = null;
  let failure: unknown = null;
  for (let mostTokens = total; mostTokens >= longest / 2; mostTokens = Math.floor(mostTokens / 2)) {
    try {
      const plan = makePlan({ ...request, work: workOf(rows, mostTokens, settings) });
      if (best === null || stepTime(plan) < stepTime(best.plan)) best = { plan, mostTokens };
    } catch (error) {
      if (!(error instanceof PipeloraError) || error.code !== "PL_PLACEMENT_INFEASIBLE") throw error;
      failure = error;
    }
  }
  if (best === null) throw failure;
  return best;
}

function stepTime(plan: Plan): number {
  return plan.predicted?.stepTimeMs ?? Number.POSITIVE_INFINITY;
}
