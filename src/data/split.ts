import type { Dataset } from "./dataset.ts";
import { randperm } from "./mt19937.ts";
import { datasetError } from "./readers/checks.ts";

/**
 * Holds out ceil(share * rows) rows chosen by the seed; both parts keep the file's order. Error: PL_DATASET_INVALID where
 * nothing would be left to train on.
 */
export function splitDataset(dataset: Dataset, share: number, seed: number): { train: Dataset; evaluation: Dataset } {
  const held = Math.ceil(share * dataset.size);
  if (held >= dataset.size) {
    throw datasetError(
      `Holding out ${share} of ${dataset.size} rows leaves none to train on.`,
      "Lower the share held out.",
    );
  }
  const chosen = new Set(randperm(dataset.size, seed).subarray(0, held));
  const rows = Array.from({ length: dataset.size }, (_, index) => index);
  return {
    train: dataset.select(rows.filter((row) => !chosen.has(row))),
    evaluation: dataset.select(rows.filter((row) => chosen.has(row))),
  };
}
