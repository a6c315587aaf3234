import type { RankReport__Output } from "../../../rpc/generated/pipelora/v1/RankReport.ts";
import type { RankTrace, StepSpan } from "./chrome-trace.ts";

/** What ranks told of some steps, all at once. */
export interface ToldSteps {
  readonly steps: readonly StepSpan[];
  readonly ranks: readonly RankTrace[];
  readonly reports: readonly RankReport__Output[];
}
