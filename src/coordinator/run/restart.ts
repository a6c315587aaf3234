import { RESTARTABLE } from "../cluster/restartable.ts";
import type { Done, Ended } from "./attempt.ts";

/** What follows an attempt that did not reach the run's end. */
export interface Restart {
  /** Why, for people. */
  readonly reason: string;
  /** Whether it counts against max_restarts: a worker that left costs no step. */
  readonly counts: boolean;
}

/**
 * The one rule of restarts, whatever state the attempt was in. Throws the attempt's error where another attempt would meet it
 * again, where none is left, or where the run is to stop.
 */
export function restartAfter(
  ended: Exclude<Ended, Done>,
  { left, stopping }: { readonly left: number; readonly stopping: boolean },
): Restart {
  if (ended.name === "left") {
    return { reason: `${ended.worker} leaves, all steps are saved; waiting for its return`, counts: false };
  }
  const { error } = ended;
  if (!RESTARTABLE.has(error.code) || left < 1 || stopping) throw error;
  return { reason: `${error.message}; going on from the last checkpoint`, counts: true };
}
