import type { RunRecord } from "./run-record.ts";

/** A run that the page shows. Whether it goes on in this process or lies in a folder is its own affair. */
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
  /** Somebody looks at the last step. Returns whether it is recorded more often for that. */
  looked(): boolean;
}
