import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  balancedPartition,
  leastOverfull,
  type PartitionProblem,
  type Stage,
  type StageDevice,
  sequentialPartition,
  stageLoad,
  stageShare,
} from "../../../src/plan/placement/partition.ts";
import { rangeCosts } from "../../../src/plan/placement/range-costs.ts";

const unit = fc.record({
  weights: fc.integer({ min: 0, max: 15 }),
  held: fc.integer({ min: 0, max: 5 }),
  saved: fc.integer({ min: 0, max: 5 }),
  workspace: fc.integer({ min: 0, max: 10 }),
  expansion: fc.integer({ min: 0, max: 5 }),
  time: fc.integer({ min: 0, max: 20 }),
});

const problem: fc.Arbitrary<PartitionProblem> = fc
  .record({
    units: fc.array(unit, { minLength: 1, maxLength: 7 }),
    overhead: fc.integer({ min: 0, max: 4 }),
    devices: fc.array(
      fc.record({
        capacity: fc.integer({ min: 5, max: 120 }),
        slowness: fc.integer({ min: 1, max: 3 }),
        maxUnits: fc.constantFrom(1, 2, 99, 99),
      }),
      { minLength: 1, maxLength: 4 },
    ),
    microBatches: fc.integer({ min: 1, max: 4 }),
    required: fc.option(fc.nat(3), { nil: null, freq: 3 }),
  })
  .map(({ units, overhead, devices, microBatches, required }) => {
    const costsOf = (slowness: number) =>
      rangeCosts(
        units.map((own) => ({ ...own, time: own.time * slowness })),
        overhead,
      );
    return {
      devices: devices.map(({ slowness, ...device }, id): StageDevice => ({ ...device, id, costs: costsOf(slowness) })),
      required: required === null || required >= devices.length ? null : required,
      from: 0,
      to: units.length,
      inFlight: (after: number) => Math.min(microBatches, after + 1),
    };
  });

/** Every way to place the units. */
function* allPartitions({ devices, from, to, required }: PartitionProblem, d = 0, first = from): Iterable<Stage[]> {
  const device = devices[d];
  if (device === undefined) {
    if (first === to) yield [];
    return;
  }
  if (device.id !== required) yield* allPartitions({ devices, from, to, required } as PartitionProblem, d + 1, first);
  for (let end = first + 1; end <= Math.min(to, first + device.maxUnits); end++) {
    for (const rest of allPartitions({ devices, from, to, required } as PartitionProblem, d + 1, end)) {
      yield [{ device, first, end }, ...rest];
    }
  }
}

const loadOf = (stages: readonly Stage[]) => Math.max(...stages.map(stageLoad));
const shareOf = (of: PartitionProblem, stages: readonly Stage[]) =>
  Math.max(...stages.map((stage, index) => stageShare(of, stage, stages.length - 1 - index)));
const near = (a: number, b: number) => Math.abs(a - b) <= 1e-5 * Math.max(1, Math.abs(b));

test("the largest load is the least there is, and then the fullest device is as empty as can be", () => {
  fc.assert(
    fc.property(problem, (shape) => {
      const fitting = [...allPartitions(shape)].filter((stages) => shareOf(shape, stages) <= 1);
      const found = balancedPartition(shape);
      if (fitting.length === 0) return assert.equal(found, null);
      assert.ok(found !== null);
      assert.ok(shareOf(shape, found) <= 1);
      const least = Math.min(...fitting.map(loadOf));
      assert.ok(near(loadOf(found), least), `${loadOf(found)} against ${least}`);
      const leanest = Math.min(
        ...fitting.filter((stages) => loadOf(stages) <= least * (1 + 1e-6)).map((stages) => shareOf(shape, stages)),
      );
      assert.ok(near(shareOf(shape, found), leanest), `${shareOf(shape, found)} against ${leanest}`);
    }),
    { numRuns: 3000 },
  );
});

test("units are placed once, in order, at most maxUnits a device, on every required device", () => {
  fc.assert(
    fc.property(problem, (shape) => {
      for (const stages of [balancedPartition(shape), sequentialPartition({ ...shape, required: null })]) {
        if (stages === null) continue;
        assert.equal(stages[0]!.first, 0);
        assert.equal(stages.at(-1)!.end, shape.to);
        for (const [index, { first, end, device }] of stages.entries()) {
          assert.ok(first < end);
          if (index > 0) {
            assert.equal(first, stages[index - 1]!.end);
            assert.ok(device.id > stages[index - 1]!.device.id);
          }
        }
      }
      const balanced = balancedPartition(shape);
      if (balanced === null) return;
      for (const { device, first, end } of balanced) assert.ok(end - first <= device.maxUnits);
      if (shape.required !== null) assert.ok(balanced.some(({ device }) => device.id === shape.required));
    }),
    { numRuns: 1000 },
  );
});

test("sequential finds a placement wherever one holds with as many micro-batches in flight as stages", () => {
  fc.assert(
    fc.property(problem, (shape) => {
      const free = { ...shape, required: null, inFlight: () => 1 };
      const unlimited = { ...free, devices: free.devices.map((device) => ({ ...device, maxUnits: 99 })) };
      const exists = [...allPartitions(unlimited)].some((stages) => shareOf(unlimited, stages) <= 1);
      assert.equal(sequentialPartition(unlimited) !== null, exists);
    }),
    { numRuns: 1000 },
  );
});

test("each sequential stage is full: the next unit would not fit", () => {
  fc.assert(
    fc.property(problem, (shape) => {
      const free = { ...shape, required: null, inFlight: () => 1 };
      const stages = sequentialPartition(free);
      for (const { device, first, end } of stages?.slice(0, -1) ?? []) {
        assert.ok(device.costs.memory(first, end, 1) <= device.capacity);
        assert.ok(device.costs.memory(first, end + 1, 1) > device.capacity);
      }
    }),
    { numRuns: 1000 },
  );
});

test("the least overfull placement is the one whose fullest device lacks least", () => {
  fc.assert(
    fc.property(problem, (shape) => {
      const all = [...allPartitions(shape)];
      const found = leastOverfull(shape);
      if (all.length === 0) return assert.equal(found, null);
      const least = Math.min(...all.map((stages) => shareOf(shape, stages)));
      assert.ok(near(shareOf(shape, found!), least));
    }),
    { numRuns: 1000 },
  );
});
