import type { Case } from "./drawing.ts";
import type { End, Program } from "./processes.ts";

/** What whoever runs the coordinator does after an end that its documents name. */
export interface Answer {
  /** How the end is called in the report. */
  readonly name: string;
  readonly flags: readonly string[];
  readonly freesDisk: boolean;
}

const RESUME = ["--resume-from-checkpoint", "auto"];
/** Of a save, and of the look before a weight is read. */
const FULL_DISK = ["PL_OUTPUT_UNWRITABLE", "PL_PREFLIGHT_FAILED"];
const TEMPORARY = 75;
const SIGTERM_CODE = 143;
const KILLED = 137;

/** The documented answer to this end of the coordinator in this case; null: the end is a finding. */
export function answerTo({ fault, kind }: Case, coordinator: Program, end: End): Answer | null {
  const code = /\bPL_[A-Z_]+/.exec(lastWords(coordinator.stderr))?.[0] ?? "no code";
  const again = (name: string, flags = RESUME): Answer => ({ name, flags, freesDisk: false });
  switch (end.code) {
    case TEMPORARY:
      // One fault costs a restart, which the run makes itself; only who never joined can be missed.
      return code === "PL_WORKER_MISSING" ? again(`75 ${code}`) : null;
    case SIGTERM_CODE:
      return fault === "coordinator terminated" ? again("143") : null;
    case KILLED:
      return fault === "coordinator killed" ? again("137") : null;
    case 1:
      if (fault === "disk full" && FULL_DISK.includes(code)) return { ...again(`1 ${code}`), freesDisk: true };
      // Without an optimizer's state there is nothing to go on from: only a new start is left, and the message says so.
      if (kind === "only model" && code === "PL_RESUME_INVALID") return again(`1 ${code}`, ["--overwrite-output-dir"]);
      // Neither is there where the run was stopped before it had a second checkpoint to fall back to.
      if (fault === "checkpoint damaged" && /none of the 1 checkpoints/.test(lastWords(coordinator.stderr)))
        return again(`1 ${code}`, ["--overwrite-output-dir"]);
      return null;
    default:
      return null;
  }
}

/** The message with which a program ended. */
export function lastWords(stderr: string): string {
  const lines = stderr.split("\n").filter((line) => line.trim() !== "");
  const at = lines.findLastIndex((line) => /\bPL_[A-Z_]+/.test(line));
  return at < 0 ? (lines.at(-1) ?? "") : lines[at]!;
}
