import { randperm } from "./mt19937.ts";
import { datasetError } from "./readers/checks.ts";

/** Row numbers of each part, in the set's order. */
export interface RowSplit {
  readonly train: readonly number[];
  readonly evaluation: readonly number[];
}

/**
 * Holds out ceil(share * rows) rows chosen by the seed. `label`: the set, as messages name it. Error: PL_DATASET_INVALID where nothing
 * would be left to train on.
 */
export function splitRows(rows: number, share: number, seed: number, label: string): RowSplit {
  const held = Math.ceil(share * rows);
  if (held >= rows) {
    throw datasetError(
      `${label}: holding out ${share} of ${rows} rows leaves none to train on.`,
      "Lower the share held out.",
    );
  }
  const chosen = new Set(randperm(rows, seed).subarray(0, held));
  const all = Array.from({ length: rows }, (_, index) => index);
  return { train: all.filter((row) => !chosen.has(row)), evaluation: all.filter((row) => chosen.has(row)) };
}
