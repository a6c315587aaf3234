import type { PipeloraError } from "../../../common/errors.ts";
import type { Saved } from "../checkpoints/run-files.ts";
import type { LogEntry } from "../checkpoints/trainer-state.ts";
import type { LastStep, RunBeginning, StepProgress } from "../reporter.ts";

/** An event of a run as a JSON object, for files and the page. "event" is its kind. Its writer adds the time. */
export type RunEvent = Readonly<Record<string, unknown>> & { readonly event: string };

export function stepEvent({ learningRate, maxSteps, stepMs, gradNorm, ...rest }: StepProgress): RunEvent {
  return {
    event: "step",
    ...{ ...rest, grad_norm: gradNorm, learning_rate: learningRate, max_steps: maxSteps, step_ms: stepMs },
  };
}

export function logEvent(entry: LogEntry): RunEvent {
  return { event: "log", ...entry };
}

export function saveEvent({ path }: Saved, step: number): RunEvent {
  return { event: "save", step, path };
}

export function endEvent(summary: Readonly<Record<string, unknown>>): RunEvent {
  return { event: "end", ...summary };
}

/** The event of an adapter that ends with an error while the others go on. */
export function failedEvent({ code, message }: Pick<PipeloraError, "code" | "message">): RunEvent {
  return { event: "failed", code, message };
}

export function beganEvent({ settings, changed }: RunBeginning): RunEvent {
  return { event: "began", settings, changed };
}

export function lastStepEvent(last: LastStep): RunEvent {
  return { event: "last_step", ...last };
}

/** A line of the log. */
export interface Line {
  readonly level: "debug" | "info" | "warn" | "error";
  readonly text: string;
}

export function lineEvent({ level, text }: Line): RunEvent {
  return { event: "line", level, text };
}

/** The event of a run's end. `thrown`: the error that ended it; null: it was done. */
export function endedEvent(thrown: unknown): RunEvent {
  if (thrown === null) return { event: "ended", error: null };
  const { code = "PL_INTERNAL", message, hint = null } = thrown as { code?: string; message: string; hint?: string };
  return { event: "ended", error: { code, message, hint } };
}
