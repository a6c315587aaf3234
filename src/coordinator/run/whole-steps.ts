import type { Config } from "../../config/options.ts";

type Steps = Pick<Config, "logging_steps" | "save_steps" | "eval_steps">;

/** The Trainer's rule: steps below 1 are a share of all, rounded up. */
export function withWholeSteps<T extends Steps>(config: T, total: number): T {
  const whole = (steps: number) => (steps < 1 ? Math.ceil(total * steps) : steps);
  return {
    ...config,
    logging_steps: whole(config.logging_steps),
    save_steps: whole(config.save_steps),
    eval_steps: config.eval_steps === null ? null : whole(config.eval_steps),
  };
}
