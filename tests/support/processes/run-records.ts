import { JOURNAL_FILE, LAST_STEP_FILE, METRICS_FILE } from "../../../src/serve/page/folder-run.ts";

/** What the coordinator alone writes into a run's folder, of this run's times: no other node has it, and no two runs the same. */
export const RUN_RECORDS: readonly string[] = [LAST_STEP_FILE, METRICS_FILE, JOURNAL_FILE];
