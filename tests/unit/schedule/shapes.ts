import fc from "fast-check";
import type { SchedulePolicy } from "../../../src/common/schedule-policies.ts";
import type { Instruction, ScheduledSegment, ScheduleRequest } from "../../../src/schedule/index.ts";

export const unitTimes = { forward: () => 1, backward: () => 2 };

/** One segment a rank. */
export function line(ranks: number): ScheduledSegment[] {
  return roundRobin(ranks, 1);
}

/** `chunks` segments a rank, round robin. */
export function roundRobin(ranks: number, chunks: number): ScheduledSegment[] {
  return Array.from({ length: ranks * chunks }, (_, segment) => ({ ranks: [segment % ranks] }));
}

/** The same with a last segment that the last `sharers` of the ranks share. */
export function sharing(ranks: number, chunks: number, sharers: number): ScheduledSegment[] {
  const all = Array.from({ length: ranks }, (_, rank) => rank);
  return [...roundRobin(ranks, chunks), { ranks: all.slice(-sharers) }];
}

export const policy = fc.constantFrom<SchedulePolicy>("sequential", "gpipe", "1f1b", "interleaved");

const anyRanks = fc.uniqueArray(fc.integer({ min: 0, max: 4 }), { minLength: 1, maxLength: 4 });
const seconds = fc.integer({ min: 0, max: 20 });

/**
 * Any assignment of 1 … 9 segments to 1 … 5 ranks, of any of them to several; or a round robin one, with or without a last segment that ranks
 * share. Any planned times, or none; any lowest trainable segment, or none.
 */
export const request: fc.Arbitrary<ScheduleRequest> = fc
  .record({
    segments: fc.oneof<fc.Arbitrary<ScheduledSegment[]>[]>(
      fc.array(
        fc.record({
          ranks: fc.oneof(
            anyRanks,
            anyRanks.map(([rank]) => [rank!]),
          ),
        }),
        { minLength: 1, maxLength: 9 },
      ),
      fc.tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 4 })).map(([p, v]) => roundRobin(p, v)),
      fc
        .tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 5 }))
        .map(([p, v, sharers]) => sharing(p, v, Math.min(p, sharers))),
    ),
    planned: fc.option(fc.array(fc.tuple(seconds, seconds), { minLength: 10, maxLength: 10 })),
    microBatches: fc.integer({ min: 1, max: 13 }),
    policy,
    lowest: fc.integer({ min: 0, max: 10 }),
  })
  .map(({ lowest, planned, segments, ...rest }) => ({
    ...rest,
    segments: segments.map(({ ranks }, index) => {
      const [forward, backward] = planned?.[index % planned.length] ?? [];
      return { ranks, ...(forward === undefined ? {} : { forward, backward: backward! }) };
    }),
    needsBackward: (segment) => segment >= lowest,
  }));

export function describeRequest({ segments, microBatches, policy, needsBackward }: ScheduleRequest): string {
  const lowest = segments.findIndex((_, segment) => needsBackward(segment));
  return `${policy} ranks [${segments.map(({ ranks }) => ranks.join("/"))}] m=${microBatches} lowest=${lowest}`;
}

export function computeOf(lists: readonly (readonly Instruction[])[], kind: "forward" | "backward", segment: number) {
  return lists.flatMap((list, rank) =>
    list.filter((op) => op.kind === kind && op.segment === segment).map((op) => ({ rank, microBatch: op.microBatch })),
  );
}
