import type { Device } from "./devices.ts";

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

/** Numbers of micro-batches worth a try for so many rows: every one up to four, then in steps of a quarter or less. */
export function microBatchCounts(rows: number): number[] {
  const counts: number[] = [];
  for (let count = 1; count <= Math.min(rows, MOST_TRIED); count += Math.max(1, Math.floor(count / 4)))
    counts.push(count);
  if (rows <= MOST_TRIED && counts.at(-1) !== rows) counts.push(rows);
  return counts;
}

const MOST_TRIED = 256;
