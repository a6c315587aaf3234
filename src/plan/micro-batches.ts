import type { Device } from "./devices.ts";

interface CountPolicy {
  /** A product of this many tokens runs near its full rate. */
  readonly tokens: number;
  readonly fewest: number;
  readonly most: number;
  /** Beyond this many tokens products get no faster and only activations grow: there may then be more micro-batches than `most`. */
  readonly mostTokens: number;
}

/** With m micro-batches, a pipeline of p devices idles (p − 1) / (m + p − 1) of a step: m should be large, but so should products be. */
const POLICIES: Readonly<Record<Device["kind"], CountPolicy>> = {
  cpu: { tokens: 128, fewest: 4, most: 16, mostTokens: 2048 },
  cuda: { tokens: 1024, fewest: 1, most: 32, mostTokens: 8192 },
};

/**
 * How many micro-batches a step has where neither the user nor the plan chooses. It depends on the step's size and the kind of device, never
 * on the placement: so runs over 1, 2 or 4 devices add up in the same order and give the same bits.
 */
export function microBatchCount(stepTokens: number, rows: number, kind: Device["kind"]): number {
  const { tokens, fewest, most, mostTokens } = POLICIES[kind];
  const full = Math.min(most, Math.max(fewest, Math.round(stepTokens / tokens)));
  return Math.max(1, Math.min(rows, Math.max(full, Math.ceil(stepTokens / mostTokens))));
}

/** 1, 2, 3, 4, 6, 8, 12, … up to `most`, and `most` itself: numbers worth a try, each a half or a third above the one before. */
export function stepsUpTo(most: number): number[] {
  const counts: number[] = [];
  for (let power = 1; power <= most; power *= 2) {
    counts.push(power);
    if (power > 1 && 1.5 * power <= most) counts.push(1.5 * power);
  }
  if (counts.at(-1) !== most) counts.push(most);
  return counts;
}

/** Every number of micro-batches up to this is tried: a plan's devices, and so its speed, may differ much between two neighbours. */
const ALL_UP_TO = 32;

/**
 * No micro-batch larger than this is tried, unless a single row is longer. At this size a product is within 0.4 % of its full rate, and
 * expanding weights takes less than 0.4 % of a pass. Activations would go on growing, towards tensors of 2^31 elements.
 */
export const MOST_TOKENS = 49_152;

/** Numbers of micro-batches worth a try for a step with this many rows and tokens. */
export function countsToTry(rows: number, tokens: number): number[] {
  const fewest = Math.max(1, Math.min(rows, Math.ceil(tokens / MOST_TOKENS)));
  if (rows - fewest < ALL_UP_TO) return Array.from({ length: rows - fewest + 1 }, (_, i) => fewest + i);
  return [fewest, ...stepsUpTo(rows).filter((count) => count > fewest)];
}

/** The numbers around `count` that countsToTry leaves out: for a second, finer search. */
export function countsNear(count: number, rows: number, tokens: number): number[] {
  const tried = countsToTry(rows, tokens);
  const at = tried.indexOf(count);
  if (at < 0) return [];
  const [below, above] = [tried[at - 1] ?? count, tried[at + 1] ?? count];
  const between = Array.from({ length: Math.max(0, above - below - 1) }, (_, i) => below + 1 + i);
  const stride = Math.ceil(between.length / MOST_NEAR);
  return between.filter((near, index) => near !== count && index % stride === 0);
}

const MOST_NEAR = 8;
