import type { RankReport__Output } from "../../../rpc/generated/pipelora/v1/RankReport.ts";
import type { RankTrace, StepSpan } from "./chrome-trace.ts";

/** The ranks' answer about some recorded steps. */
export interface ToldSteps {
  readonly steps: readonly StepSpan[];
  readonly ranks: readonly RankTrace[];
  readonly reports: readonly RankReport__Output[];
}
