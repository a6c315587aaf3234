import { PipeloraError } from "../../../common/errors.ts";

/** The state of loss scaling. */
export interface LossScaleState {
  readonly scale: number;
  /** How many steps had no overflow since the scale last changed. */
  readonly steadySteps: number;
}

/** torch.amp.GradScaler's defaults. */
const INITIAL_SCALE = 2 ** 16;
const GROWTH = 2;
const BACKOFF = 0.5;
const GROWTH_INTERVAL = 2000;
/** If gradients overflow even below this scale, the scale is not the reason. */
const LEAST_SCALE = 2 ** -20;

export const INITIAL_LOSS_SCALE: LossScaleState = { scale: INITIAL_SCALE, steadySteps: 0 };

/**
 * Dynamic loss scaling for float16 compute (torch.amp.GradScaler): returns the next step's scale. `finite`: whether this step's gradients are
 * finite. Errors: PL_LOSS_NOT_FINITE if the scale has fallen too far.
 */
export function nextLossScale({ scale, steadySteps }: LossScaleState, finite: boolean, step: number): LossScaleState {
  if (finite) {
    const steady = steadySteps + 1;
    return steady < GROWTH_INTERVAL ? { scale, steadySteps: steady } : { scale: scale * GROWTH, steadySteps: 0 };
  }
  const lowered = scale * BACKOFF;
  if (lowered >= LEAST_SCALE) return { scale: lowered, steadySteps: 0 };
  throw new PipeloraError("PL_LOSS_NOT_FINITE", `step ${step}: gradients are not finite at a loss scale of ${scale}`, {
    hint: "Use --compute-dtype bfloat16, lower the learning rate, or look for rows that overflow float16.",
  });
}
