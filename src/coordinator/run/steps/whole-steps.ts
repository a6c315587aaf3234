import type { Config } from "../../../config/options.ts";
import { assertBestIsSaved } from "../checkpoints/best.ts";

type Steps = Pick<
  Config,
  "logging_steps" | "save_steps" | "eval_steps" | "load_best_model_at_end" | "eval_strategy" | "save_strategy"
>;

/**
 * Replaces steps below 1, which are shares of all steps, by whole numbers, rounded up as in the Trainer. Errors: PL_CONFIG_INVALID
 * (assertBestIsSaved).
 */
export function withWholeSteps<T extends Steps>(config: T, total: number): T {
  const whole = (steps: number) => (steps < 1 ? Math.ceil(total * steps) : steps);
  const steps = {
    logging_steps: whole(config.logging_steps),
    save_steps: whole(config.save_steps),
    eval_steps: config.eval_steps === null ? null : whole(config.eval_steps),
  };
  assertBestIsSaved({ ...config, ...steps });
  return { ...config, ...steps };
}
