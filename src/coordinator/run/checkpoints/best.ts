import { PipeloraError } from "../../../common/errors.ts";
import type { Config } from "../../../config/options.ts";
import type { TrainerState } from "./trainer-state.ts";

export type BestSettings = Pick<
  Config,
  | "load_best_model_at_end"
  | "metric_for_best_model"
  | "greater_is_better"
  | "early_stopping_patience"
  | "early_stopping_threshold"
  | "save_strategy"
>;

/** The metric that evaluations are compared by. */
interface Metric {
  readonly name: string;
  readonly better: (value: number, than: number) => boolean;
}

/** The consequences of an evaluation. */
export interface Judgement {
  /** Whether it is the best so far. */
  readonly isBest: boolean;
  /** Whether early stopping ends the run here. */
  readonly stops: boolean;
}

/**
 * The metric for the best model, as in the Trainer (transformers 5.17: _determine_best_metric and EarlyStoppingCallback). Without a named metric
 * it is the loss. Null: neither the best model nor early stopping is asked for.
 */
function metricOf(settings: BestSettings): Metric | null {
  const asked = settings.metric_for_best_model;
  const needed =
    settings.load_best_model_at_end || settings.early_stopping_patience !== null || settings.save_strategy === "best";
  if (asked === null && !needed) return null;
  const name = `eval_${(asked ?? "loss").replace(/^eval_/, "")}`;
  const greater = settings.greater_is_better ?? !/(loss|runtime)$/.test(name);
  return { name, better: greater ? (value, than) => value > than : (value, than) => value < than };
}

/** Compares the evaluation after `state.globalStep` steps with the best so far, and notes a new best in `state`. NaN is never better. */
export function judge(
  settings: BestSettings,
  values: Readonly<Record<string, number>>,
  state: TrainerState,
): Judgement {
  const metric = metricOf(settings);
  if (metric === null) return { isBest: false, stops: false };
  const value = values[metric.name]!;
  const before = state.bestMetric;
  const isBest = before === null ? !Number.isNaN(value) : metric.better(value, before);
  // Early stopping compares with the best before this evaluation.
  const enough =
    before === null || (metric.better(value, before) && Math.abs(value - before) > settings.early_stopping_threshold);
  state.evaluationsWithoutProgress = enough ? 0 : state.evaluationsWithoutProgress + 1;
  if (isBest) {
    state.bestMetric = value;
    state.bestGlobalStep = state.globalStep;
  }
  const patience = settings.early_stopping_patience;
  return { isBest, stops: patience !== null && state.evaluationsWithoutProgress >= patience };
}

/** Call it after steps are whole numbers. Errors: PL_CONFIG_INVALID if the best evaluation might have no checkpoint. */
export function assertBestIsSaved(
  config: Pick<
    Config,
    "load_best_model_at_end" | "eval_strategy" | "save_strategy" | "logging_steps" | "save_steps" | "eval_steps"
  >,
): void {
  const each = config.eval_steps ?? config.logging_steps;
  if (!config.load_best_model_at_end || config.eval_strategy !== "steps" || config.save_strategy !== "steps") return;
  if (config.save_steps % each === 0) return;
  throw new PipeloraError(
    "PL_CONFIG_INVALID",
    `--load-best-model-at-end: expected --save-steps to be a multiple of --eval-steps, got ${config.save_steps} and ${each}`,
    { hint: "Save where it is evaluated, or use --save-strategy best." },
  );
}
