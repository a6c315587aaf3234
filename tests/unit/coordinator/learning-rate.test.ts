import assert from "node:assert/strict";
import { test } from "node:test";
import { learningRate, warmupSteps } from "../../../src/coordinator/learning-rate.ts";

test("linear decay falls from the peak to zero", () => {
  const settings = { type: "linear", peak: 0.002, warmupSteps: 0, totalSteps: 9 } as const;
  assert.deepEqual(
    [0, 1, 8].map((done) => learningRate(settings, done)),
    [0.002, 0.002 * (8 / 9), 0.002 * (1 / 9)],
  );
});

test("cosine with warm-up gives the Trainer's rates", () => {
  const settings = { type: "cosine", peak: 0.002, warmupSteps: 2, totalSteps: 9 } as const;
  const expected = [0, 0.001, 0.002, 0.001900968867902419, 0.0016234898018587336];
  for (const [done, rate] of expected.entries()) assert.ok(Math.abs(learningRate(settings, done) - rate) < 1e-15);
});

test("constant schedules stay at the peak after warm-up", () => {
  assert.equal(learningRate({ type: "constant", peak: 1, warmupSteps: 0, totalSteps: 10 }, 9), 1);
  const warm = { type: "constant_with_warmup", peak: 1, warmupSteps: 4, totalSteps: 10 } as const;
  assert.deepEqual(
    [0, 1, 4, 9].map((done) => learningRate(warm, done)),
    [0, 0.25, 1, 1],
  );
});

test("warm-up is a number of steps, or a share of them rounded up", () => {
  assert.equal(warmupSteps({ warmup_steps: 7, warmup_ratio: 0.5 }, 100), 7);
  assert.equal(warmupSteps({ warmup_steps: 0, warmup_ratio: 0.05 }, 101), 6);
  assert.equal(warmupSteps({ warmup_steps: 0.1, warmup_ratio: 0 }, 25), 3);
});
