import { PipeloraError } from "../common/errors.ts";
import type { Instruction, ScheduleRequest } from "./instruction.ts";
import { scheduleLists } from "./list-scheduler.ts";
import { gpipe, interleaved, isRoundRobin, oneAtATime, oneForwardOneBackward, type Policy } from "./policy.ts";

/**
 * One instruction list a rank, for one optimizer step: index is the rank, ranks that hold nothing have an empty list.
 * Whatever the policy and the placement, every segment runs its micro-batches in ascending order, forward and backward, so
 * gradients add up in the same order. Messages of one link direction are received in the order they are sent, and one
 * buffered message a direction is enough. interleaved falls back to 1f1b unless segment i is on rank i mod p.
 */
export function buildSchedule(request: ScheduleRequest): Instruction[][] {
  check(request);
  const ranks = 1 + Math.max(...request.segments.map((segment) => segment.rank));
  const interleaves = request.policy === "interleaved" && isRoundRobin(request, ranks);
  const lists = scheduleLists(request, ranks, interleaves ? interleaved(ranks) : POLICIES[request.policy]);
  if (lists === null) throw stuck(request);
  return lists;
}

const POLICIES: Readonly<Record<ScheduleRequest["policy"], Policy>> = {
  sequential: oneAtATime,
  gpipe,
  "1f1b": oneForwardOneBackward,
  interleaved: oneForwardOneBackward,
};

function check({ segments, microBatches, needsBackward }: ScheduleRequest): void {
  if (segments.length === 0) throw new PipeloraError("PL_INTERNAL", "a schedule needs at least one segment");
  if (!Number.isInteger(microBatches) || microBatches < 1) {
    throw new PipeloraError("PL_INTERNAL", `a schedule needs at least one micro-batch, not ${microBatches}`);
  }
  const learns = segments.map((_, segment) => needsBackward(segment));
  if (learns.some((needs, segment) => !needs && learns[segment - 1] === true)) {
    throw new PipeloraError("PL_INTERNAL", `backward must reach every segment above the lowest trainable: ${learns}`);
  }
}

function stuck({ policy, segments, microBatches }: ScheduleRequest): PipeloraError {
  const ranks = segments.map((segment) => segment.rank).join(", ");
  return new PipeloraError(
    "PL_INTERNAL",
    `${policy} over segments on ranks ${ranks}: ${microBatches} micro-batches wait for each other`,
  );
}
