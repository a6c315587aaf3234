import { datasetError } from "./readers/checks.ts";

/** Far above any epoch that can be trained. Reached only by weights that differ by orders of magnitude. */
const MAX_ROWS = 1 << 28;

/**
 * An epoch's rows of several sets that lie back to back, as numbers of rows in the whole: sets are spread evenly over each other, and each
 * keeps its own order. Depends on sizes and weights alone.
 *
 * Without weights every row comes once. With weights (all sets or none) the shares of the epoch's rows are as the weights, to a row; the
 * epoch is the shortest in which every set comes whole, and the others begin again from their first rows: what
 * `datasets.interleave_datasets(stopping_strategy="all_exhausted")` means, with exact shares in place of draws.
 * Error: PL_DATASET_INVALID.
 */
export function mixSets(sizes: readonly number[], weights: readonly (number | null)[]): Uint32Array {
  const counts = epochCounts(sizes, weights);
  const total = counts.reduce((sum, count) => sum + count, 0);
  const bases = sizes.map((_, set) => sizes.slice(0, set).reduce((sum, size) => sum + size, 0));
  const taken = sizes.map(() => 0);
  const rows = new Uint32Array(total);
  for (let at = 0; at < total; at++) {
    // The set that is furthest behind its share; of equals, the first.
    let next = -1;
    for (let set = 0; set < sizes.length; set++) {
      if (taken[set] === counts[set]) continue;
      if (next < 0 || (taken[set]! + 0.5) * counts[next]! < (taken[next]! + 0.5) * counts[set]!) next = set;
    }
    rows[at] = bases[next]! + (taken[next]! % sizes[next]!);
    taken[next]! += 1;
  }
  return rows;
}

/** Rows that each set gives to an epoch. */
function epochCounts(sizes: readonly number[], weights: readonly (number | null)[]): number[] {
  if (weights.every((weight) => weight === null)) return [...sizes];
  if (weights.includes(null)) {
    throw datasetError(
      `${weights.filter((weight) => weight === null).length} of ${weights.length} sets have no weight.`,
      "Give each set a weight, or none.",
    );
  }
  const sum = weights.reduce<number>((total, weight) => total + weight!, 0);
  const shares = weights.map((weight) => weight! / sum);
  const total = Math.max(...sizes.map((size, set) => Math.ceil(size / shares[set]! - 1e-9)));
  if (total > MAX_ROWS) {
    throw datasetError(`The weights make an epoch of ${total} rows.`, "Bring them closer together.");
  }
  // The largest remainders get the rows that rounding down leaves.
  const exact = shares.map((share) => share * total);
  const counts = exact.map((value, set) => Math.max(sizes[set]!, Math.floor(value + 1e-9)));
  const byRemainder = exact
    .map((value, set) => ({ set, rest: value - counts[set]! }))
    .sort((a, b) => b.rest - a.rest || a.set - b.set);
  const left = total - counts.reduce((all, count) => all + count, 0);
  for (let turn = 0; turn < left; turn++) counts[byRemainder[turn % counts.length]!.set]! += 1;
  return counts;
}
