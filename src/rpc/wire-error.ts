import { isErrorCode, PipeloraError, toPipeloraError } from "../common/errors.ts";
import type { Failure, Failure__Output } from "./generated/pipelora/v1/Failure.ts";

/** Errors keep their code across processes. */
export function toFailure(thrown: unknown): Failure {
  const native = thrown as { code?: unknown };
  const code = typeof native?.code === "string" && isErrorCode(native.code) ? native.code : "PL_INTERNAL";
  const error = toPipeloraError(thrown, code);
  return { code: error.code, message: error.message, hint: error.hint ?? "" };
}

export function fromFailure(failure: Failure__Output, where: string): PipeloraError {
  const code = isErrorCode(failure.code) ? failure.code : "PL_INTERNAL";
  const details = failure.hint === "" ? {} : { hint: failure.hint };
  return new PipeloraError(code, `${where}: ${failure.message}`, details);
}
