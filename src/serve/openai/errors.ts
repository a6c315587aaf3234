import type { z } from "zod";
import { type ErrorCode, type PipeloraError, toPipeloraError } from "../../common/errors.ts";
import { Busy } from "../../generation/scheduler.ts";

/** The body of every failed request. */
export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
}

interface ApiErrorDetails {
  readonly type?: string;
  readonly param?: string | null;
  readonly code?: string | null;
  readonly retryAfterS?: number | null;
  readonly cause?: unknown;
}

/** An answer other than 2xx, in OpenAI's shape. */
export class ApiError extends Error {
  readonly status: number;
  readonly body: ErrorBody;
  /** Seconds after which another attempt may succeed; null: none would. */
  readonly retryAfterS: number | null;

  constructor(status: number, message: string, details: ApiErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.status = status;
    this.retryAfterS = details.retryAfterS ?? null;
    const type = details.type ?? (status < 500 ? "invalid_request_error" : "server_error");
    this.body = { error: { message, type, param: details.param ?? null, code: details.code ?? null } };
  }
}

/** Errors of the catalogue that are not defects of this server, with the status that the client gets. */
const STATUS: Partial<Record<ErrorCode, { readonly status: number; readonly code: string; readonly type?: string }>> = {
  PL_REQUEST_INVALID: { status: 400, code: "context_length_exceeded" },
  PL_TEMPLATE_INVALID: { status: 400, code: "invalid_messages" },
  PL_REQUEST_LATE: { status: 504, code: "timeout", type: "timeout_error" },
  PL_WORKER_LOST: { status: 503, code: "worker_lost" },
  PL_WORKER_MISSING: { status: 503, code: "worker_lost" },
  PL_LINK_FAILED: { status: 503, code: "worker_lost" },
  PL_INTERRUPTED: { status: 503, code: "shutting_down" },
};

/** Converts whatever a handler threw into the client's error. */
export function toApiError(thrown: unknown): ApiError {
  if (thrown instanceof ApiError) return thrown;
  if (thrown instanceof Busy) {
    return new ApiError(429, sentence(thrown), {
      type: "rate_limit_error",
      code: "rate_limit_exceeded",
      retryAfterS: thrown.retryAfterS,
      cause: thrown,
    });
  }
  // Requests that fastify refuses before a handler: too large a body, invalid JSON, a wrong media type.
  const { statusCode, message } = thrown as { statusCode?: unknown; message?: unknown };
  if (typeof statusCode === "number" && statusCode >= 400 && statusCode < 500) {
    return new ApiError(statusCode, String(message), { cause: thrown });
  }
  const error = toPipeloraError(thrown);
  const known = STATUS[error.code];
  return new ApiError(known?.status ?? 500, sentence(error), {
    ...(known?.type === undefined ? {} : { type: known.type }),
    code: known?.code ?? error.code,
    cause: thrown,
  });
}

export function modelNotFound(id: string, known: readonly string[]): ApiError {
  return new ApiError(404, `The model \`${id}\` does not exist. Models here: ${known.join(", ")}.`, {
    param: "model",
    code: "model_not_found",
  });
}

/** The first problem in a request's body, by its place. */
export function invalidRequest(issues: readonly z.core.$ZodIssue[]): ApiError {
  const [first] = issues;
  const unknown = first?.code === "unrecognized_keys" ? (first.keys[0] ?? "") : null;
  const path = [...(first?.path ?? []), ...(unknown === null ? [] : [unknown])].map(String);
  const param = path.join(".");
  const what =
    unknown === null ? `Invalid value for '${param}': ${first?.message}.` : `Unrecognized request argument: ${param}.`;
  return new ApiError(400, what, {
    param: path.length === 0 ? null : param,
    code: unknown === null ? "invalid_value" : "unknown_parameter",
  });
}

function sentence({ message, hint }: PipeloraError): string {
  const whole = `${message.charAt(0).toUpperCase()}${message.slice(1)}`.replace(/\.$/, "");
  return hint === undefined ? `${whole}.` : `${whole}. ${hint}`;
}
