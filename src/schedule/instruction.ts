import type { SchedulePolicy } from "../common/schedule-policies.ts";
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

/** A run of layers, and who runs it. */
export interface ScheduledSegment {
  /** They take its micro-batches in turn: micro-batch i runs on ranks[i mod their number]. Each once; most segments have one. */
  readonly ranks: readonly number[];
  /** Seconds of a micro-batch, as planned: the order of a rank's operations follows from them. Left out: 1 forward, 2 backward. */
  readonly forward?: number;
  readonly backward?: number;
}

export interface ScheduleRequest {
  /** In model order; neighbours on one rank hand over without a message. */
  readonly segments: readonly ScheduledSegment[];
  readonly microBatches: number;
  readonly policy: SchedulePolicy;
  /**
   * Whether anything at or before this segment learns: false up to the lowest trainable segment, true from there on.
   * Always false: lists for evaluation, forward only.
   */
  readonly needsBackward: (segment: number) => boolean;
}

/** The rank that runs a micro-batch in a segment. */
export function rankOf({ ranks }: Pick<ScheduledSegment, "ranks">, microBatch: number): number {
  return ranks[microBatch % ranks.length]!;
}

/** How many of so many micro-batches a rank runs in a segment that it takes part in. */
export function turnsOf({ ranks }: Pick<ScheduledSegment, "ranks">, rank: number, microBatches: number): number {
  return Math.max(0, Math.ceil((microBatches - ranks.indexOf(rank)) / ranks.length));
}
