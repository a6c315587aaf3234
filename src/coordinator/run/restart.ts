import { RESTARTABLE } from "../cluster/restartable.ts";
import type { Done, Ended } from "./attempt.ts";

/** The decision to make another attempt. */
export interface Restart {
  /** Why, for people. */
  readonly reason: string;
  /** Whether it counts against max_restarts. It does not if a worker only left, or an elastic run has made a step since. */
  readonly counts: boolean;
}

/** The run's situation when an attempt has ended. */
export interface Standing {
  /** How many restarts are left. */
  readonly left: number;
  readonly stopping: boolean;
  /** Null: the run is not elastic. */
  readonly elastic: {
    /** Whether the attempt made a new step, or a worker was told to stop. */
    readonly free: boolean;
    /** Whether the workers of an earlier attempt could hold the model. The remaining ones may be too few. */
    readonly fitted: boolean;
  } | null;
}

/**
 * Decides about a restart, whatever state the attempt was in. Throws the attempt's error if another attempt would fail in the same way, if no
 * restart is left, or if the run must stop.
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
