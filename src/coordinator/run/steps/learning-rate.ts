import type { Config } from "../../../config/options.ts";

export interface LearningRateSettings {
  readonly type: Config["lr_scheduler_type"];
  /** lr_scheduler_kwargs, checked by schedulerProblem. Absent: transformers' defaults. */
  readonly kwargs?: Config["lr_scheduler_kwargs"];
  readonly peak: number;
  readonly warmupSteps: number;
  readonly totalSteps: number;
}

/** transformers' rule: warmup_steps below 1 is a share of all steps, like warmup_ratio. Shares are rounded up. */
export function warmupSteps(config: Pick<Config, "warmup_steps" | "warmup_ratio">, totalSteps: number): number {
  if (config.warmup_steps >= 1) return Math.floor(config.warmup_steps);
  return Math.ceil(totalSteps * (config.warmup_steps > 0 ? config.warmup_steps : config.warmup_ratio));
}

/** The learning rate of the update after `done` updates (transformers' get_scheduler). */
export function learningRate(settings: LearningRateSettings, done: number): number {
  const { type, peak, warmupSteps: warm, totalSteps, kwargs = {} } = settings;
  const given = (key: string, otherwise: number) => (typeof kwargs[key] === "number" ? kwargs[key] : otherwise);
  if (type === "constant") return peak;
  if (type === "warmup_stable_decay") return peak * stableThenDecay(settings, done);
  const least = () => given("min_lr_rate", given("min_lr", 0) / peak);
  if (type === "cosine_warmup_with_min_lr") return peak * warmedFromAbove(settings, least(), done);
  if (done < warm) return peak * (done / Math.max(1, warm));
  if (type === "constant_with_warmup") return peak;
  const left = Math.max(1, totalSteps - warm);
  const progress = (done - warm) / left;
  switch (type) {
    case "linear":
      return peak * Math.max(0, (totalSteps - done) / left);
    case "cosine":
      return peak * Math.max(0, wave(given("num_cycles", 0.5), progress));
    case "cosine_with_restarts":
      return progress >= 1 ? 0 : peak * wave(0.5, (given("num_cycles", 1) * progress) % 1);
    case "cosine_with_min_lr": {
      const floor = least();
      return peak * Math.max(0, wave(given("num_cycles", 0.5), progress) * (1 - floor) + floor);
    }
    case "polynomial": {
      const end = given("lr_end", 1e-7);
      return done > totalSteps ? end : (peak - end) * (1 - progress) ** given("power", 1) + end;
    }
    case "inverse_sqrt": {
      // Without a time scale the warm-up's length is used, or 10,000 steps without a warm-up.
      const scale = given("timescale", warm || 10_000);
      return peak / Math.sqrt((done + scale - warm) / scale);
    }
  }
}

/** A cosine that falls from 1 to 0 in half a cycle. */
function wave(cycles: number, progress: number): number {
  return 0.5 * (1 + Math.cos(Math.PI * cycles * 2 * progress));
}

/** cosine_warmup_with_min_lr's share of the peak: the first step has a rate already, the last one the least. */
function warmedFromAbove(
  { warmupSteps: warm, totalSteps, kwargs = {} }: LearningRateSettings,
  least: number,
  done: number,
): number {
  const { warmup_lr_rate: first, num_cycles: cycles = 0.5 } = kwargs;
  if (done < warm) {
    return typeof first === "number" ? first + ((1 - first) * done) / Math.max(1, warm - 1) : (done + 1) / warm;
  }
  const progress = (done - warm + 1) / Math.max(1, totalSteps - warm);
  return Math.max(0, wave(Number(cycles), progress) * (1 - least) + least);
}

/** warmup_stable_decay's share of the peak. */
function stableThenDecay({ warmupSteps: warm, totalSteps, kwargs = {} }: LearningRateSettings, done: number): number {
  const given = (key: string, otherwise: number) => (typeof kwargs[key] === "number" ? kwargs[key] : otherwise);
  const floor = given("min_lr_ratio", 0);
  const above = (factor: number) => Math.max(0, factor * (1 - floor) + floor);
  const decay = given("num_decay_steps", 0);
  const stable = given("num_stable_steps", totalSteps - warm - decay);
  if (done < warm) {
    const progress = done / Math.max(1, warm);
    const type = kwargs["warmup_type"] ?? "linear";
    if (type === "cosine") return above(0.5 * (1 - Math.cos(Math.PI * progress)));
    return above(type === "1-sqrt" ? 1 - Math.sqrt(1 - progress) : progress);
  }
  if (done < warm + stable) return 1;
  if (done >= warm + stable + decay) return floor;
  const progress = (done - warm - stable) / Math.max(1, decay);
  const type = kwargs["decay_type"] ?? "cosine";
  if (type === "linear") return above(1 - progress);
  return above(type === "1-sqrt" ? 1 - Math.sqrt(progress) : wave(given("num_cycles", 0.5), progress));
}
