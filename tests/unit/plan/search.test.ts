import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { predictedCompute } from "../../../src/coordinator/planning/prediction.ts";
import {
  type Device,
  type LinkRate,
  linkKey,
  type MeasuredDevice,
  makePlan,
  type Plan,
} from "../../../src/plan/index.ts";
import { Infeasible } from "../../../src/plan/plan.ts";
import { attemptReplicatedPlan } from "../../../src/plan/replicas.ts";
import { gpus, model, NF4, request, WORK } from "./models.ts";

const qwen = model("qwen-7b");
const GIB = 2 ** 30;

function measured(block: number, head: number): MeasuredDevice {
  const at = (seconds: number) => [512, 2048].map((tokens) => ({ tokens, forward: seconds, backward: 2 * seconds }));
  return { blockLayer: 1, block: at(block), head: at(head), update: 0 };
}

/** Devices of any speed and memory on one node or two, over links of any rate; models of a few blocks or many. */
const problem = fc.record({
  blocks: fc.integer({ min: 2, max: 12 }),
  devices: fc.array(
    fc.record({
      block: fc.integer({ min: 1, max: 9 }),
      gib: fc.integer({ min: 6, max: 40 }),
      node: fc.constantFrom("a", "b"),
    }),
    { minLength: 1, maxLength: 5 },
  ),
  head: fc.integer({ min: 1, max: 30 }),
  microBatches: fc.integer({ min: 1, max: 24 }),
  latency: fc.constantFrom(0, 1e-4, 1e-3),
  strategy: fc.constantFrom("auto", "fastest", "balanced", "balanced_low_0", "sequential" as const),
  schedule: fc.constantFrom("auto", "1f1b", "gpipe", "sequential", "interleaved" as const),
});
type Problem = typeof problem extends fc.Arbitrary<infer T> ? T : never;

function requestOf({ blocks, devices, head, microBatches, latency, strategy, schedule }: Problem) {
  const all = devices.map(({ gib, node }, id): Device => ({ ...gpus(1)[0]!, id, node, memoryBytes: gib * GIB }));
  const link: LinkRate = { bytesPerSecond: 1e10, latency, compute: 0 };
  const rates = {
    measured: new Map(devices.map(({ block }, id) => [id, measured(block / 1e3, (head * block) / 4e3)])),
    links: new Map([linkKey("a", "a"), linkKey("a", "b"), linkKey("b", "b")].map((key) => [key, link])),
    crowded: new Map<string, number>(),
  };
  const spec = model("qwen-7b", { num_hidden_layers: blocks });
  return request(spec, all, { holding: NF4, strategy, rates, work: { ...WORK, microBatches, schedule } });
}

function planOf(asked: ReturnType<typeof requestOf>): Plan | null {
  const plan = attemptReplicatedPlan(asked, 1);
  return plan instanceof Infeasible ? null : plan;
}

test("any plan places every layer, keeps to budgets, and predicts no less than its busiest device computes", () => {
  fc.assert(
    fc.property(problem, (shape) => {
      const asked = requestOf(shape);
      const plan = planOf(asked);
      if (plan === null) return;
      const { segments, predicted } = plan;
      const layers = segments.flatMap(({ firstLayer, lastLayer }) => [firstLayer, lastLayer]);
      assert.deepEqual([layers[0], layers.at(-1)], [0, asked.spec.layers.length - 1]);
      segments.forEach(({ firstLayer, devices }, index) => {
        if (index > 0) assert.equal(firstLayer, segments[index - 1]!.lastLayer + 1);
        assert.ok(
          devices.length > 0 && devices.length <= shape.microBatches && new Set(devices).size === devices.length,
        );
        if (devices.length > 1) assert.equal(index, segments.length - 1);
      });
      for (const { memory } of plan.devices) assert.ok(memory.total <= memory.budget);
      const compute = [...predictedCompute(plan, shape.microBatches).values()];
      assert.ok(predicted!.stepTimeMs >= Math.max(...compute) * (1 - 1e-9), `${predicted!.stepTimeMs} and ${compute}`);
      if (shape.strategy !== "auto" && shape.strategy !== "fastest") {
        for (const { devices } of segments) assert.equal(devices.length, 1);
        if (plan.schedule !== "interleaved")
          assert.equal(new Set(segments.map(({ ranks }) => ranks[0])).size, segments.length);
      }
    }),
    { numRuns: 250 },
  );
});

test("auto's step is no longer than balanced's, and fastest's no longer than auto's", () => {
  fc.assert(
    fc.property(problem, (shape) => {
      const steps = (["fastest", "auto", "balanced"] as const).map((strategy) => {
        const schedule = strategy === "balanced" ? "1f1b" : "auto";
        return planOf(requestOf({ ...shape, strategy, schedule }))?.predicted?.stepTimeMs ?? Number.POSITIVE_INFINITY;
      });
      // More pieces or more devices are taken for a percent.
      assert.ok(steps[0]! <= 1.02 * steps[1]! && steps[1]! <= 1.02 * steps[2]!, `${steps}`);
    }),
    { numRuns: 150 },
  );
});

test("a head on the last of eight stages costs a fifth of the step; shared, a few percent", () => {
  const steps = (["balanced", "auto"] as const).map((strategy) => {
    const work = { ...WORK, microBatches: 64, schedule: "auto" } as const;
    return makePlan(request(qwen, gpus(8), { holding: NF4, strategy, work }));
  });
  const [before, after] = steps.map(({ predicted }) => predicted!.bubble) as [number, number];
  assert.ok(before > 0.18 && after < 0.08, `${before} and ${after}`);
  assert.equal(steps[1]!.segments.at(-1)!.devices.length, 8);
});
