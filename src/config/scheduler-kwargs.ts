import { z } from "zod";
import type { Config } from "./options.ts";

type SchedulerType = Config["lr_scheduler_type"];

const share = z.number().min(0).max(1);
const steps = z.number().int().nonnegative();
const cycles = z.number().positive();

const DOWN_TO_MINIMUM = {
  num_cycles: cycles.optional(),
  min_lr: z.number().nonnegative().optional(),
  min_lr_rate: share.optional(),
};

/** Keyword arguments that transformers' get_scheduler accepts for each schedule beside warm-up and length. Other schedules accept none. */
const ACCEPTED: Readonly<Partial<Record<SchedulerType, z.ZodObject>>> = {
  cosine: z.strictObject({ num_cycles: cycles.optional() }),
  cosine_with_restarts: z.strictObject({ num_cycles: cycles.optional() }),
  polynomial: z.strictObject({ lr_end: z.number().nonnegative().optional(), power: z.number().positive().optional() }),
  inverse_sqrt: z.strictObject({ timescale: z.number().positive().optional() }),
  cosine_with_min_lr: z.strictObject(DOWN_TO_MINIMUM),
  cosine_warmup_with_min_lr: z.strictObject({ ...DOWN_TO_MINIMUM, warmup_lr_rate: share.optional() }),
  warmup_stable_decay: z.strictObject({
    num_decay_steps: steps,
    num_stable_steps: steps.optional(),
    warmup_type: z.enum(["linear", "cosine", "1-sqrt"]).optional(),
    decay_type: z.enum(["linear", "cosine", "1-sqrt"]).optional(),
    min_lr_ratio: share.optional(),
    num_cycles: cycles.optional(),
  }),
};

/** What is wrong with --lr-scheduler-kwargs; null where nothing is. */
export function schedulerProblem(
  config: Pick<Config, "lr_scheduler_type" | "lr_scheduler_kwargs" | "learning_rate">,
): string | null {
  const { lr_scheduler_type: type, lr_scheduler_kwargs: kwargs, learning_rate: peak } = config;
  const result = (ACCEPTED[type] ?? z.strictObject({})).safeParse(kwargs);
  if (!result.success) {
    const said = result.error.issues.map(({ path, message }) => [...path, message].join(": ")).join("; ");
    return `--lr-scheduler-kwargs of ${type}: ${said}`;
  }
  if (type.endsWith("_with_min_lr") && "min_lr" in kwargs === "min_lr_rate" in kwargs) {
    return `--lr-scheduler-type ${type} needs one of min_lr and min_lr_rate in --lr-scheduler-kwargs`;
  }
  const end = type === "polynomial" ? (kwargs["lr_end"] ?? 1e-7) : 0;
  if (Number(end) > 0 && Number(end) >= peak) {
    return `--lr-scheduler-type polynomial: lr_end ${end} must lie below the learning rate ${peak}`;
  }
  return null;
}
