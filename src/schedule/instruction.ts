/** What a rank does next. Lists of these, one a rank, are a schedule. */
export interface Instruction {
  readonly kind: InstructionKind;
  readonly segment: number;
  readonly microBatch: number;
  /** The rank on the other end of a send or receive; absent for compute. */
  readonly peer?: number;
}

/**
 * forward and backward name the segment they run. A message names the segment of its own rank too: send-forward the one
 * whose output goes to `segment + 1` on the peer, recv-forward the one whose input comes; send-backward the one whose
 * input gradient goes to `segment - 1`, recv-backward the one whose output gradient comes.
 */
export type InstructionKind =
  | "recv-forward"
  | "forward"
  | "send-forward"
  | "recv-backward"
  | "backward"
  | "send-backward";

/**
 * sequential: one micro-batch at a time through all segments and back. gpipe: all forwards, then all backwards (Huang et
 * al. 2019). 1f1b: one forward, one backward, few activations held (PipeDream-flush, Narayanan et al. 2021).
 * interleaved: 1F1B over several segments a rank (Megatron-LM).
 */
export type SchedulePolicy = "sequential" | "gpipe" | "1f1b" | "interleaved";

export const SCHEDULE_POLICIES: readonly SchedulePolicy[] = ["sequential", "gpipe", "1f1b", "interleaved"];

export interface ScheduleRequest {
  /** In model order; neighbours on one rank hand over without a message. */
  readonly segments: readonly { readonly rank: number }[];
  readonly microBatches: number;
  readonly policy: SchedulePolicy;
  /**
   * Whether anything at or before this segment learns: false up to the lowest trainable segment, true from there on.
   * Always false: lists for evaluation, forward only.
   */
  readonly needsBackward: (segment: number) => boolean;
}
