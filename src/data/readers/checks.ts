import { PipeloraError } from "../../common/errors.ts";
import { shown } from "../../common/shown.ts";

export function datasetError(message: string, hint: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_DATASET_INVALID", message, { hint, ...(cause === undefined ? {} : { cause }) });
}

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export const isEmpty = (value: unknown) =>
  value === undefined || value === null || value === "" || (Array.isArray(value) && value.length === 0);

/** Between these bounds, float32 sums over a step still include every label. */
const [LEAST_WEIGHT, MOST_WEIGHT] = [1e-6, 1e6];

/** A label's weight in the loss. `what`: its place, for the error. */
export function lossWeight(what: string, value: unknown): number {
  if (value === 0 || (typeof value === "number" && value >= LEAST_WEIGHT && value <= MOST_WEIGHT)) return value;
  throw datasetError(
    `${what} must be 0 or a number from ${LEAST_WEIGHT} to ${MOST_WEIGHT}, got ${shown(value)}.`,
    "Leave it out for 1, write 0 for what is not to be trained on.",
  );
}
