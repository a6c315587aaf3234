import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { LastStep } from "../../../../src/coordinator/run/reporter.ts";
import type { RankTrace } from "../../../../src/coordinator/run/tracing/chrome-trace.ts";
import { StepTraces } from "../../../../src/coordinator/run/tracing/step-traces.ts";
import { StepWatch } from "../../../../src/coordinator/run/tracing/step-watch.ts";

/** A run of `steps` steps that take `stepMs` each, where a look costs `costMs`. Returns what was told. */
function walk(run: { steps: number; stepMs: number; costMs: number; looked: (step: number) => boolean }) {
  let now = 0;
  let step = 0;
  let looks = 0;
  const told: LastStep[] = [];
  const watch = new StepWatch({
    ...{ now: () => now, looked: () => run.looked(step), measured: () => ({}) },
    reporter: { lastStep: (last) => told.push(last) },
  });
  watch.begin();
  for (step = 1; step <= run.steps; step++) {
    const traced = watch.wants(step === run.steps);
    const startMs = now;
    now += run.stepMs;
    if (!traced) continue;
    now += run.costMs;
    looks++;
    watch.told({ steps: [{ step, startMs, endMs: startMs + run.stepMs }], ranks: [], reports: [] }, now - run.costMs);
  }
  return { told: told.map((last) => last.step), looks, total: now };
}

test("the third step and the last one are looked at, whatever the run's length", () => {
  for (const steps of [1, 2, 3, 4, 50]) {
    const { told } = walk({ steps, stepMs: 10, costMs: 1, looked: () => false });
    assert.deepEqual(told, steps > 3 ? [3, steps] : [steps], `${steps} steps`);
  }
});

test("nobody looks: less than a thousandth of the time beside the first and the last; somebody looks: less than a twentieth", () => {
  const run = fc.record({
    steps: fc.integer({ min: 4, max: 3_000 }),
    stepMs: fc.double({ min: 1, max: 5_000, noNaN: true }),
    costMs: fc.double({ min: 0.1, max: 2_000, noNaN: true }),
  });
  fc.assert(
    fc.property(run, fc.boolean(), (own, looked) => {
      const { looks, total } = walk({ ...own, looked: () => looked });
      const share = ((looks - 2) * own.costMs) / total;
      assert.ok(share <= (looked ? 1 / 20 : 1 / 1000), `${looks} looks: ${share}`);
      assert.ok((looks - 2) * (looked ? 2_000 : 60_000) <= total);
    }),
    { numRuns: 100 },
  );
});

test("who looks gets a step soon", () => {
  const { told } = walk({ steps: 1_000, stepMs: 100, costMs: 5, looked: (step) => step >= 200 && step < 400 });
  const seen = told.filter((step) => step >= 200 && step < 400);
  assert.equal(seen[0], 200);
  for (const [at, step] of seen.slice(1).entries()) assert.ok(step - seen[at]! <= 21, told.join());
  assert.ok(seen.length >= 9);
});

test("--trace's steps and those that are looked at are told once each, to whom they belong", async () => {
  const spans = new Map<number, number>();
  let untold: number[] = [];
  const asked: number[][] = [];
  const pipeline = {
    report: async () => {
      const steps = untold;
      untold = [];
      asked.push(steps);
      return [{ spans: steps.map((step) => ({ kind: "forward", step, startMs: 1, endMs: 2 })) }] as never;
    },
    clocks: async () => [{ offsetMs: 0, errorMs: 0 }],
  };
  const members = [{ hello: { node: "a", device: "cpu", deviceName: "CPU" } }] as never;
  const chosen = new Set([2, 4, 5]);
  const kept: number[] = [];
  const file = {
    ...{ begin: () => {}, wants: (step: number) => chosen.has(step), endsWith: (step: number) => step === 5 },
    told: async ({ ranks }: { ranks: readonly RankTrace[] }) => {
      kept.push(...ranks[0]!.spans.map(({ step }) => step).filter((step) => chosen.has(step)));
    },
    finish: async () => {},
  };
  const watched: LastStep[] = [];
  const watch = new StepWatch({
    looked: () => false,
    measured: () => ({}),
    reporter: { lastStep: (one) => watched.push(one) },
  });
  const traces = new StepTraces(file as never, watch);
  traces.begin();
  for (let step = 1; step <= 7; step++) {
    const traced = traces.wants(step, step === 7);
    if (traced) untold.push(step);
    spans.set(step, (spans.get(step) ?? 0) + 1);
    await traces.stepped(step, { began: performance.now(), traced }, { members, pipeline });
  }
  await traces.finish({ members, pipeline });
  assert.deepEqual(kept, [2, 4, 5]);
  assert.deepEqual(
    watched.map(({ step, ranks }) => [step, ranks[0]!.spans.length]),
    [
      [3, 1],
      [7, 1],
    ],
  );
  assert.deepEqual(asked, [[2, 3], [4, 5], [7]]);
});
