import { type ErrorCode, PipeloraError } from "../../common/errors.ts";

/** What an adapter's own settings, rows or folder do; everything else is the run's. */
const OWN: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  "PL_LOSS_NOT_FINITE",
  "PL_DATASET_INVALID",
  "PL_OUTPUT_UNWRITABLE",
  "PL_RESUME_INVALID",
]);

/** Whether a failure ends an adapter alone: the others' numbers and files have nothing to do with it. */
export function isOwnFault(thrown: unknown): thrown is PipeloraError {
  return thrown instanceof PipeloraError && OWN.has(thrown.code);
}
