import { type ErrorCode, isErrorCode, PipeloraError, toPipeloraError } from "../common/errors.ts";
import type { Failure__Output } from "./generated/pipelora/v1/Failure.ts";

/** What to do about errors of the engine, which does not know the flags. */
const HINTS: Partial<Record<ErrorCode, string>> = {
  PL_OUT_OF_MEMORY:
    "Use --gradient-checkpointing, a smaller --micro-batch-tokens, --load-in-4bit or more devices; `coordinator plan` shows what each would need.",
  PL_LOSS_NOT_FINITE: "Lower the learning rate, or look for rows that overflow the compute dtype.",
};

/** Errors keep their code across processes. */
export function toFailure(thrown: unknown): Failure__Output {
  const native = thrown as { code?: unknown };
  const code = typeof native?.code === "string" && isErrorCode(native.code) ? native.code : "PL_INTERNAL";
  const error = toPipeloraError(thrown, code);
  return { code: error.code, message: error.message, hint: error.hint ?? HINTS[error.code] ?? "" };
}

/** `where`: who reports the error; absent: the message says it. */
export function fromFailure(failure: Failure__Output, where?: string): PipeloraError {
  const code = isErrorCode(failure.code) ? failure.code : "PL_INTERNAL";
  const details = failure.hint === "" ? {} : { hint: failure.hint };
  return new PipeloraError(code, where === undefined ? failure.message : `${where}: ${failure.message}`, details);
}
