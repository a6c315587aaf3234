import type { Config } from "../config/options.ts";

export interface LearningRateSettings {
  readonly type: Config["lr_scheduler_type"];
  readonly peak: number;
  readonly warmupSteps: number;
  readonly totalSteps: number;
}

/** transformers' rule: warmup_steps below 1 is a share of all steps, as warmup_ratio is; shares round up. */
export function warmupSteps(config: Pick<Config, "warmup_steps" | "warmup_ratio">, totalSteps: number): number {
  if (config.warmup_steps >= 1) return Math.floor(config.warmup_steps);
  return Math.ceil(totalSteps * (config.warmup_steps > 0 ? config.warmup_steps : config.warmup_ratio));
}

/** Learning rate of the update that follows `done` finished updates (transformers' get_scheduler). */
export function learningRate(
  { type, peak, warmupSteps: warm, totalSteps }: LearningRateSettings,
  done: number,
): number {
  if (type === "constant") return peak;
  if (done < warm) return peak * (done / Math.max(1, warm));
  if (type === "constant_with_warmup") return peak;
  const left = Math.max(1, totalSteps - warm);
  if (type === "linear") return peak * Math.max(0, (totalSteps - done) / left);
  const progress = (done - warm) / left;
  return peak * Math.max(0, 0.5 * (1 + Math.cos(Math.PI * progress)));
}
