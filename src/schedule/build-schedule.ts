import { PipeloraError } from "../common/errors.ts";
import { dealOf, inGroups } from "./groups.ts";
import { goesInGroups, roomOf } from "./held.ts";
import type { Instruction, ScheduleRequest } from "./instruction.ts";
import { scheduleLists } from "./list-scheduler.ts";
import { gpipe, oneAtATime, oneForwardOneBackward, type Policy } from "./policy.ts";

/**
 * The instruction lists of one optimizer step, by rank. A rank without a segment has an empty list.
 * With every policy and placement, each rank of a segment runs its micro-batches in ascending order in both passes, so gradients add up in
 * the same order. Messages in one direction of a link are received in the order in which they are sent, and a link need buffer only one
 * message in each direction.
 */
export function buildSchedule(request: ScheduleRequest): Instruction[][] {
  check(request);
  const ranks = 1 + Math.max(...request.segments.flatMap((segment) => segment.ranks));
  const lists = scheduleLists(request, ranks, policyOf(request));
  if (lists === null) throw stuck(request);
  return lists;
}

function policyOf({ policy, segments }: ScheduleRequest): Policy {
  if (policy === "sequential") return oneAtATime;
  if (policy === "gpipe") return gpipe;
  return goesInGroups({ policy, segments }) ? inGroups(dealOf(segments)!) : oneForwardOneBackward(roomOf(segments));
}

function check({ segments, microBatches, needsBackward }: ScheduleRequest): void {
  if (segments.length === 0) throw new PipeloraError("PL_INTERNAL", "a schedule needs at least one segment");
  if (!Number.isInteger(microBatches) || microBatches < 1) {
    throw new PipeloraError("PL_INTERNAL", `a schedule needs at least one micro-batch, not ${microBatches}`);
  }
  const odd = segments.findIndex(({ ranks }) => ranks.length === 0 || new Set(ranks).size < ranks.length);
  if (odd >= 0) {
    throw new PipeloraError(
      "PL_INTERNAL",
      `segment ${odd} is on ranks ${segments[odd]!.ranks}: expected one or more, each once`,
    );
  }
  const learns = segments.map((_, segment) => needsBackward(segment));
  if (learns.some((needs, segment) => !needs && learns[segment - 1] === true)) {
    throw new PipeloraError("PL_INTERNAL", `backward must reach every segment above the lowest trainable: ${learns}`);
  }
}

function stuck({ policy, segments, microBatches }: ScheduleRequest): PipeloraError {
  const ranks = segments.map((segment) => segment.ranks.join("/")).join(", ");
  return new PipeloraError(
    "PL_INTERNAL",
    `${policy} over segments on ranks ${ranks}: ${microBatches} micro-batches wait for each other`,
  );
}
