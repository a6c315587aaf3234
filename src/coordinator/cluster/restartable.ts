import type { ErrorCode } from "../../common/errors.ts";

/** Faults that a new set of workers may not meet again. */
export const RESTARTABLE: ReadonlySet<ErrorCode> = new Set<ErrorCode>(["PL_WORKER_LOST", "PL_LINK_FAILED"]);
