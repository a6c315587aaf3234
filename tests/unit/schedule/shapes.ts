import fc from "fast-check";
import type { SchedulePolicy } from "../../../src/common/schedule-policies.ts";
import type { Instruction, ScheduleRequest } from "../../../src/schedule/index.ts";

export const unitTimes = { forward: () => 1, backward: () => 2 };

/** One segment a rank. */
export function line(ranks: number): { rank: number }[] {
  return Array.from({ length: ranks }, (_, rank) => ({ rank }));
}

/** `chunks` segments a rank, round robin. */
export function roundRobin(ranks: number, chunks: number): { rank: number }[] {
  return Array.from({ length: ranks * chunks }, (_, segment) => ({ rank: segment % ranks }));
}

export const policy = fc.constantFrom<SchedulePolicy>("sequential", "gpipe", "1f1b", "interleaved");

/** Any assignment of 1 … 9 segments to 1 … 5 ranks, or a round robin one; any lowest trainable segment, or none. */
export const request: fc.Arbitrary<ScheduleRequest> = fc
  .record({
    segments: fc.oneof(
      fc.array(fc.record({ rank: fc.integer({ min: 0, max: 4 }) }), { minLength: 1, maxLength: 9 }),
      fc.tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 4 })).map(([p, v]) => roundRobin(p, v)),
    ),
    microBatches: fc.integer({ min: 1, max: 13 }),
    policy,
    lowest: fc.integer({ min: 0, max: 10 }),
  })
  .map(({ lowest, ...rest }) => ({ ...rest, needsBackward: (segment) => segment >= lowest }));

export function describeRequest({ segments, microBatches, policy, needsBackward }: ScheduleRequest): string {
  const lowest = segments.findIndex((_, segment) => needsBackward(segment));
  return `${policy} ranks [${segments.map((segment) => segment.rank)}] m=${microBatches} lowest=${lowest}`;
}

export function computeOf(lists: readonly (readonly Instruction[])[], kind: "forward" | "backward", segment: number) {
  return lists.flatMap((list, rank) =>
    list.filter((op) => op.kind === kind && op.segment === segment).map((op) => ({ rank, microBatch: op.microBatch })),
  );
}
