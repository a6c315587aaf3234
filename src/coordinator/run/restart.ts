import { RESTARTABLE } from "../cluster/restartable.ts";
import type { Done, Ended } from "./attempt.ts";

/** What follows an attempt that did not reach the run's end. */
export interface Restart {
  /** Why, for people. */
  readonly reason: string;
  /** Whether it counts against max_restarts: a worker that left costs no step, nor does an elastic run that made one since. */
  readonly counts: boolean;
}

/** How the run stands. */
export interface Standing {
  /** Restarts that are left. */
  readonly left: number;
  readonly stopping: boolean;
  /** Null: the run is not elastic. */
  readonly elastic: {
    /** Whether the attempt made a step that none before had made, or its worker was told to stop. */
    readonly free: boolean;
    /** Whether the workers of an attempt before could hold the model: those that are left may not. */
    readonly fitted: boolean;
  } | null;
}

/**
 * The one rule of restarts, whatever state the attempt was in. Throws the attempt's error where another attempt would meet it
 * again, where none is left, or where the run is to stop.
 */
export function restartAfter(ended: Exclude<Ended, Done>, { left, stopping, elastic }: Standing): Restart {
  if (ended.name === "regroup") return { reason: ended.reason, counts: false };
  const { error } = ended;
  if (elastic?.fitted === true && error.code === "PL_PLACEMENT_INFEASIBLE" && !stopping) {
    return { reason: `${error.message}; waiting for more workers`, counts: false };
  }
  const counts = elastic?.free !== true;
  if (!RESTARTABLE.has(error.code) || (counts && left < 1) || stopping) throw error;
  const from = elastic === null ? "the last checkpoint" : "the last step whose state is whole";
  return { reason: `${error.message}; going on from ${from}`, counts };
}
