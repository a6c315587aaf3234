import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  attemptReplicatedPlan,
  countsNear,
  countsToTry,
  fastestPlan,
  linkKey,
  type MeasuredDevice,
  MOST_TOKENS,
  makePlan,
  type RateOverrides,
  stepsUpTo,
  type Work,
} from "../../../src/plan/index.ts";
import { Infeasible } from "../../../src/plan/plan.ts";
import { cpus, gpus, model, NF4, request, WORK } from "./models.ts";

const qwen = model("qwen-7b");
const BLOCKS = 32;
const firstBlock = qwen.layers.findIndex(({ kind }) => kind === "block");

/** A block takes `block` seconds forward and twice that back at 1024 tokens, and in proportion at others. */
function measured(block: number, update = 0): MeasuredDevice {
  const at = (tokens: number, seconds: number) => ({ tokens, forward: seconds, backward: 2 * seconds });
  const points = [at(512, block / 2), at(1024, block)];
  return { blockLayer: firstBlock, block: points, head: points, update };
}

function rates(devices: readonly MeasuredDevice[], compute = 0): RateOverrides {
  const links = devices
    .slice(1)
    .map((_, id) => [linkKey(id, id + 1), { bytesPerSecond: 1e12, latency: 0, compute }] as const);
  return { measured: new Map(devices.entries()), links: new Map(links), crowded: new Map() };
}

test("a plan's times are those measured", () => {
  const work: Work = { ...WORK, checkpointing: "none", microBatches: 8 };
  const plan = makePlan(
    request(qwen, cpus(1, null), { work, maxMemory: new Map([[0, 1e12]]), rates: rates([measured(0.01, 0.002)]) }),
  );
  const pass = (BLOCKS + 1) * 0.03;
  assert.ok(Math.abs(plan.predicted!.stepTimeMs / 1e3 - (8 * pass + BLOCKS * 0.002)) < 1e-9);
  // Between the points, and beyond them, times follow the lines through them.
  const half = { ...work, meanTokens: 768, meanLabelTokens: 768 };
  const smaller = makePlan(
    request(qwen, cpus(1, null), { work: half, maxMemory: new Map([[0, 1e12]]), rates: rates([measured(0.01)]) }),
  );
  assert.ok(Math.abs(smaller.predicted!.stepTimeMs / 1e3 - 0.75 * 8 * pass) < 1e-9);
});

test("measured passes found their weights expanded: a block that is not cached takes longer by its expansions", () => {
  const work: Work = { ...WORK, checkpointing: "none", microBatches: 8 };
  const step = (weightCache: "auto" | "off") => {
    const holding = { holding: NF4, weightCache, work, rates: rates([measured(0.01)]) };
    return makePlan(request(qwen, gpus(1, 1e12), holding)).predicted!.stepTimeMs / 1e3;
  };
  const pass = (BLOCKS + 1) * 0.03;
  const cached = step("auto");
  assert.ok(Math.abs(cached / (8 * pass) - 1) < 0.02, `${cached} s beside ${8 * pass} s measured`);
  assert.ok(step("off") > cached + 8 * BLOCKS * 2 * 50e-6);
});

test("recompute costs a forward, messages of a CPU its own time", () => {
  const work: Work = { ...WORK, checkpointing: "none", microBatches: 8 };
  const maxMemory = new Map([0, 1].map((id) => [id, 1e12]));
  const step = (changes: Partial<Work>, compute: number) =>
    makePlan(
      request(qwen, cpus(2, null), {
        maxMemory,
        work: { ...work, ...changes },
        rates: rates([measured(0.01), measured(0.01)], compute),
      }),
    ).predicted!.segments;
  const plain = step({}, 0);
  const recomputing = step({ checkpointing: "all" }, 0);
  assert.ok(recomputing[0]!.backwardMs[0]! > 1.4 * plain[0]!.backwardMs[0]!);
  const bytes = 1024 * 4096 * 2;
  const busy = step({}, 1e-9);
  assert.ok(Math.abs(busy[0]!.forwardMs[0]! - plain[0]!.forwardMs[0]! - bytes * 1e-6) < 1e-6);
});

test("a device that takes twice as long gets about half as much", () => {
  const devices = gpus(2);
  const plan = makePlan(request(qwen, devices, { holding: NF4, rates: rates([measured(0.01), measured(0.02)]) }));
  const blocks = plan.segments.map(({ firstLayer, lastLayer }) => lastLayer - firstLayer + 1);
  assert.ok(blocks[0]! > 1.7 * blocks[1]! && blocks[0]! < 2.3 * blocks[1]!, `${blocks}`);
});

test("pruning leaves the fastest way to run a step in", async () => {
  const choice = fc.record({
    replicas: fc.integer({ min: 1, max: 4 }),
    microBatches: fc.constantFrom(1, 2, 4, 8, 16),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 4 }),
      fc.array(choice, { minLength: 1, maxLength: 6 }),
      fc.constantFrom("balanced", "sequential", "fastest" as const),
      async (count, picked, strategy) => {
        const choices = picked.map(({ replicas, microBatches }) => {
          const tokens = 16384 / replicas / microBatches;
          const sizes = { tokens, labelTokens: tokens, meanTokens: tokens, meanLabelTokens: tokens };
          return { replicas: Math.min(replicas, count), work: (): Work => ({ ...WORK, ...sizes, microBatches }) };
        });
        const { work: _work, ...base } = request(qwen, gpus(count), { holding: NF4, strategy });
        const all = choices.map((way) => attemptReplicatedPlan({ ...base, work: way.work() }, way.replicas));
        const speeds = all.map((plan) => (plan instanceof Infeasible ? 0 : plan.predicted!.tokensPerSecond));
        const best = (await fastestPlan(base, choices)).plan.predicted!.tokensPerSecond;
        // Within a replica of several, `fastest` is balanced over all its devices.
        if (strategy === "fastest") assert.ok(best > 0.9 * Math.max(...speeds));
        else assert.equal(best, Math.max(...speeds));
      },
    ),
    { numRuns: 40 },
  );
});

test("numbers worth a try reach from 1 to the most", () => {
  assert.deepEqual(stepsUpTo(1), [1]);
  assert.deepEqual(stepsUpTo(8), [1, 2, 3, 4, 6, 8]);
  assert.deepEqual(stepsUpTo(10), [1, 2, 3, 4, 6, 8, 10]);
  assert.deepEqual(countsToTry(5, 5000), [1, 2, 3, 4, 5]);
  assert.deepEqual(countsToTry(5, 4 * MOST_TOKENS), [4, 5]);
  assert.deepEqual(countsToTry(2, 9 * MOST_TOKENS), [2]);
  assert.deepEqual(countsToTry(80, 80), [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80]);
  assert.deepEqual(countsToTry(80, 5 * MOST_TOKENS).slice(0, 3), [5, 6, 8]);
  // The second look goes through what lies between the neighbours, not all of it where that is much.
  assert.deepEqual(countsNear(6, 80, 80), [5, 7]);
  assert.ok(countsNear(64, 80, 80).every((count) => count > 48 && count < 80 && count !== 64));
  assert.deepEqual(countsNear(3, 5, 50), []);
});
