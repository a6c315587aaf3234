import { IGNORED } from "./row-store.ts";
import type { WeightedRow } from "./steps.ts";

/** Micro-batches whose rows lie back to back without padding. */
export interface PackedMicroBatches {
  /** [micro-batch] rows of each */
  readonly batchRows: Int32Array;
  /** [row] tokens of each */
  readonly rowTokens: Int32Array;
  /** [row] */
  readonly rowIds: Int32Array;
  /** [token] */
  readonly tokens: Int32Array;
  /** [token] the label of the position after it in its row, or -100; a row's last is -100. */
  readonly targets: Int32Array;
  /** [token] weight of the target's cross entropy; 0 where it is -100. */
  readonly weights: Float32Array;
}

export type MicroBatchSize =
  /** As few micro-batches as keep each at or below this many tokens; a longer row stands alone. */
  | { readonly maxTokens: number }
  /** This many micro-batches, or as many as there are rows. */
  | { readonly count: number };

/**
 * Splits rows into micro-batches so that the largest is as small as possible. Rows stay whole and in order. The result depends on the
 * rows alone, not on placement. [micro-batch][row]
 */
export function cutMicroBatches<T extends { readonly tokens: Int32Array }>(
  rows: readonly T[],
  size: MicroBatchSize,
): T[][] {
  const sizes = groupSizes(
    rows.map((row) => row.tokens.length),
    size,
  );
  let begin = 0;
  return sizes.map((length) => {
    const batch = rows.slice(begin, begin + length);
    begin += length;
    return batch;
  });
}

/** The same cut, of rows that have these lengths: how many rows each micro-batch takes. */
export function groupSizes(lengths: ArrayLike<number>, size: MicroBatchSize): number[] {
  if (lengths.length === 0) return [];
  if (lengths.length === 1 || ("count" in size && size.count === 1)) return [lengths.length];
  // Not spread into arguments: a call takes some 100,000 at most.
  let longest = 0;
  let total = 0;
  for (let row = 0; row < lengths.length; row++) {
    longest = Math.max(longest, lengths[row]!);
    total += lengths[row]!;
  }
  const most = "count" in size ? total : Math.max(size.maxTokens, longest);
  const count = "count" in size ? Math.min(size.count, lengths.length) : groupsOf(lengths, most);
  let low = Math.max(longest, Math.ceil(total / count));
  let high = most;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (groupsOf(lengths, middle) <= count) high = middle;
    else low = middle + 1;
  }
  return splitLargest(lengths, fill(lengths, low), count);
}

/** How many groups fill() makes. */
function groupsOf(lengths: ArrayLike<number>, capacity: number): number {
  let groups = 0;
  let room = -1;
  for (let row = 0; row < lengths.length; row++) {
    const length = lengths[row]!;
    if (length > room) {
      groups++;
      room = capacity;
    }
    room -= length;
  }
  return groups;
}

/** Numbers of rows of consecutive groups, each filled up to `capacity` tokens. */
function fill(lengths: ArrayLike<number>, capacity: number): number[] {
  const groups: number[] = [];
  let room = -1;
  for (let row = 0; row < lengths.length; row++) {
    const length = lengths[row]!;
    if (length <= room) {
      groups[groups.length - 1]! += 1;
      room -= length;
    } else {
      groups.push(1);
      room = capacity - length;
    }
  }
  return groups;
}

/** Halves the group with the most tokens (of those with more than one row) until there are `count`. */
function splitLargest(all: ArrayLike<number>, groups: readonly number[], count: number): number[] {
  const result = [...groups];
  if (result.length >= count) return result;
  const lengths = Array.from(all);
  while (result.length < count) {
    const starts = result.map((_, index) => result.slice(0, index).reduce((sum, rows) => sum + rows, 0));
    const tokens = result.map((rows, index) =>
      rows === 1 ? -1 : lengths.slice(starts[index], starts[index]! + rows).reduce((sum, length) => sum + length, 0),
    );
    const largest = tokens.indexOf(Math.max(...tokens));
    const inside = lengths.slice(starts[largest], starts[largest]! + result[largest]!);
    let left = 0;
    let kept = 0;
    while (kept < inside.length - 1 && (kept === 0 || left + inside[kept]! / 2 <= tokens[largest]! / 2)) {
      left += inside[kept++]!;
    }
    result.splice(largest, 1, kept, inside.length - kept);
  }
  return result;
}

/** Lays the rows of all micro-batches back to back, each token beside what it predicts: the label after it. [micro-batch][row] */
export function packMicroBatches(batches: readonly (readonly WeightedRow[])[]): PackedMicroBatches {
  const rows = batches.flat();
  const total = rows.reduce((sum, row) => sum + row.tokens.length, 0);
  const packed = {
    batchRows: Int32Array.from(batches, (batch) => batch.length),
    rowTokens: Int32Array.from(rows, (row) => row.tokens.length),
    rowIds: Int32Array.from(rows, (row) => row.rowId),
    tokens: new Int32Array(total),
    targets: new Int32Array(total).fill(IGNORED),
    weights: new Float32Array(total),
  };
  let begin = 0;
  for (const { tokens, labels, weight, weights } of rows) {
    packed.tokens.set(tokens, begin);
    for (let t = 1; t < labels.length; t++) {
      if (labels[t] === IGNORED) continue;
      packed.targets[begin + t - 1] = labels[t]!;
      packed.weights[begin + t - 1] = weights === null ? weight : weight * weights[t]!;
    }
    begin += tokens.length;
  }
  return packed;
}
