import type { SchedulePolicy } from "../common/schedule-policies.ts";
/** One operation of a rank. A schedule is a list of these for each rank. */
export interface Instruction {
  readonly kind: InstructionKind;
  readonly segment: number;
  readonly microBatch: number;
  /** The rank at the other end of a send or receive; absent for compute. */
  readonly peer?: number;
}

/**
 * `segment` is always a segment of the instruction's own rank. forward and backward run it. send-forward sends its output to `segment + 1` on
 * the peer; recv-forward receives its input. send-backward sends the gradient of its input to `segment - 1` on the peer; recv-backward
 * receives the gradient of its output.
 */
export type InstructionKind =
  | "recv-forward"
  | "forward"
  | "send-forward"
  | "recv-backward"
  | "backward"
  | "send-backward";

/** A run of layers, and the ranks that run it. */
export interface ScheduledSegment {
  /** Micro-batch i runs on ranks[i mod ranks.length]. No rank twice. Most segments have one. */
  readonly ranks: readonly number[];
  /** Planned seconds of a micro-batch, which decide the order of a rank's operations. Absent: 1 forward, 2 backward. */
  readonly forward?: number;
  readonly backward?: number;
}

export interface ScheduleRequest {
  /** In model order. Two neighbours on one rank need no message. */
  readonly segments: readonly ScheduledSegment[];
  readonly microBatches: number;
  readonly policy: SchedulePolicy;
  /**
   * Whether anything at or before this segment is trained: false below the lowest trained segment, true from it on. Always false gives
   * forward passes only, as for evaluation.
   */
  readonly needsBackward: (segment: number) => boolean;
}

/** The rank that runs a micro-batch in a segment. */
export function rankOf({ ranks }: Pick<ScheduledSegment, "ranks">, microBatch: number): number {
  return ranks[microBatch % ranks.length]!;
}

/** How many of `microBatches` a rank runs in one of its segments. */
export function turnsOf({ ranks }: Pick<ScheduledSegment, "ranks">, rank: number, microBatches: number): number {
  return Math.max(0, Math.ceil((microBatches - ranks.indexOf(rank)) / ranks.length));
}
