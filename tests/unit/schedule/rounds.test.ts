import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { buildSchedule, simulateStep } from "../../../src/schedule/index.ts";
import { computeOf, line, policy, roundRobin } from "./shapes.ts";

/** Adapters by their numbers of micro-batches in a round, and the size of one. */
const adapters = fc.array(fc.record({ count: fc.integer({ min: 1, max: 5 }), size: fc.integer({ min: 1, max: 4 }) }), {
  minLength: 1,
  maxLength: 8,
});
const segments = fc.oneof(
  fc.integer({ min: 1, max: 5 }).map(line),
  fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 3 })).map(([p, v]) => roundRobin(p, v)),
);
const RUNS = { numRuns: 150 };

test("in a round every segment takes each adapter's micro-batches in the order of its step alone", () => {
  fc.assert(
    fc.property(adapters, segments, policy, fc.integer({ min: 0, max: 6 }), (all, stages, how, lowest) => {
      const request = { segments: stages, policy: how, needsBackward: (segment: number) => segment >= lowest };
      const owner = all.flatMap(({ count }, adapter) => Array.from({ length: count }, () => adapter));
      const lists = buildSchedule({ ...request, microBatches: owner.length });
      for (const [adapter, { count }] of all.entries()) {
        const first = owner.indexOf(adapter);
        const alone = buildSchedule({ ...request, microBatches: count });
        for (const segment of stages.keys()) {
          for (const kind of ["forward", "backward"] as const) {
            const own = computeOf(lists, kind, segment).filter(({ microBatch }) => owner[microBatch] === adapter);
            assert.deepEqual(
              own.map(({ rank, microBatch }) => ({ rank, microBatch: microBatch - first })),
              computeOf(alone, kind, segment),
            );
          }
        }
      }
    }),
    RUNS,
  );
});

/** A step of the micro-batches of these sizes over a line of stages, under 1F1B. */
function stepTime(stages: number, sizes: readonly number[]): number {
  const request = {
    segments: line(stages),
    microBatches: sizes.length,
    policy: "1f1b",
    needsBackward: () => true,
  } as const;
  const of = (factor: number) => (_segment: number, microBatch: number) => factor * sizes[microBatch]!;
  return simulateStep(buildSchedule(request), { forward: of(1), backward: of(2) }).stepTime;
}

test("a round takes no longer than the steps of its adapters one after the other, and all but one's bubble goes where sizes are alike", () => {
  fc.assert(
    fc.property(adapters, fc.integer({ min: 1, max: 6 }), (all, stages) => {
      const sizes = [...all]
        .sort((a, b) => b.size - a.size)
        .flatMap(({ count, size }) => new Array<number>(count).fill(size));
      const apart = all.reduce(
        (sum, { count, size }) => sum + stepTime(stages, new Array<number>(count).fill(size)),
        0,
      );
      assert.ok(stepTime(stages, sizes) <= apart + 1e-9);
      const alike = sizes.map(() => 1);
      assert.equal(stepTime(stages, alike), 3 * (alike.length + stages - 1));
    }),
    RUNS,
  );
});
