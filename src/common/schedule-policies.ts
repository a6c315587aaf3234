/**
 * The order in which micro-batches run through the stages of a pipeline.
 * 1f1b: one forward, one backward, few activations held (PipeDream-flush, Narayanan et al. 2021). gpipe: all forwards, then all
 * backwards (Huang et al. 2019). sequential: one micro-batch at a time through all segments and back. interleaved: 1F1B over
 * several segments a rank (Megatron-LM).
 */
export const SCHEDULE_POLICIES = ["1f1b", "gpipe", "sequential", "interleaved"] as const;
export type SchedulePolicy = (typeof SCHEDULE_POLICIES)[number];

/** auto: 1f1b or interleaved, whichever the plan finds faster. */
export const SCHEDULES = ["auto", ...SCHEDULE_POLICIES] as const;
export type Schedule = (typeof SCHEDULES)[number];
