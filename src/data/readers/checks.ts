import { PipeloraError } from "../../common/errors.ts";

export function datasetError(message: string, hint: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_DATASET_INVALID", message, { hint, ...(cause === undefined ? {} : { cause }) });
}

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

export const isEmpty = (value: unknown) =>
  value === undefined || value === null || value === "" || (Array.isArray(value) && value.length === 0);
