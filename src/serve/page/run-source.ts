import type { RunRecord } from "./run-record.ts";

/** A run that the page shows, of this process or in a folder. */
export interface RunSource {
  /** Path below the folder that is shown; "" for that folder itself. */
  readonly id: string;
  /** Its output folder. */
  readonly dir: string;
  readonly record: RunRecord;
  /** Whether this process runs it. */
  readonly live: boolean;
  /** Brings the record up to date. */
  refresh(): Promise<void>;
  /** Called while a client looks at the last step. Returns whether steps are then recorded more often. */
  looked(): boolean;
}
