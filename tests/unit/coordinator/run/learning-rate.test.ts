import assert from "node:assert/strict";
import { test } from "node:test";
import { schedulerProblem } from "../../../../src/config/scheduler-kwargs.ts";
import {
  type LearningRateSettings,
  learningRate,
  warmupSteps,
} from "../../../../src/coordinator/run/steps/learning-rate.ts";

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

const near = (actual: readonly number[], expected: readonly number[]) => {
  for (const [at, value] of expected.entries()) {
    assert.ok(Math.abs(actual[at]! - value) < 1e-12, `${at}: ${actual[at]} for ${value}`);
  }
};
/** Rates of updates 0, 2, 4, 6, 8, 10 of 10, two of them warm-up. */
const even = (type: LearningRateSettings["type"], kwargs = {}) =>
  [0, 2, 4, 6, 8, 10].map((done) => learningRate({ type, kwargs, peak: 1, warmupSteps: 2, totalSteps: 10 }, done));

test("restarts begin at the peak again, and end at zero", () => {
  near(even("cosine_with_restarts", { num_cycles: 2 }), [0, 1, 0.5, 1, 0.5, 0]);
  near(even("cosine_with_restarts"), [0, 1, 0.5 + Math.SQRT1_2 / 2, 0.5, 0.5 - Math.SQRT1_2 / 2, 0]);
});

test("a polynomial falls to its end, linear unless a power is given", () => {
  near(even("polynomial", { lr_end: 0.2 }), [0, 1, 0.8, 0.6, 0.4, 0.2]);
  near(even("polynomial", { lr_end: 0, power: 2 }), [0, 1, 0.5625, 0.25, 0.0625, 0]);
  near(even("polynomial"), [0, 1, 0.75 + 0.25e-7, 0.5 + 0.5e-7, 0.25 + 0.75e-7, 1e-7]);
});

test("the inverse root's time scale is the warm-up, else 10,000 steps", () => {
  near(even("inverse_sqrt"), [0, 1, Math.SQRT1_2, Math.sqrt(1 / 3), 0.5, Math.sqrt(0.2)]);
  near(even("inverse_sqrt", { timescale: 4 }), [
    0,
    1,
    Math.sqrt(2 / 3),
    Math.SQRT1_2,
    Math.sqrt(0.4),
    Math.sqrt(1 / 3),
  ]);
  const cold = { type: "inverse_sqrt", peak: 1, warmupSteps: 0, totalSteps: 10 } as const;
  near([learningRate(cold, 0), learningRate(cold, 30_000)], [1, 0.5]);
});

test("a cosine that ends above zero, as a rate or as a share", () => {
  near(even("cosine_with_min_lr", { min_lr_rate: 0.5 }), [
    0,
    1,
    0.75 + Math.SQRT1_2 / 4,
    0.75,
    0.75 - Math.SQRT1_2 / 4,
    0.5,
  ]);
  const half = { type: "cosine_with_min_lr", peak: 0.002, warmupSteps: 0, totalSteps: 4 } as const;
  near(
    [0, 2, 4].map((done) => learningRate({ ...half, kwargs: { min_lr: 0.001 } }, done)),
    [0.002, 0.0015, 0.001],
  );
});

test("the same with a warm-up that does not begin at zero", () => {
  // transformers 5.17's own values.
  const down = [0.8681980515339464, 0.55, 0.23180194846605365, 0.1];
  const rates = (kwargs: object, warmupSteps = 2) =>
    [0, 1, 2, 3, 4, 5].map((done) =>
      learningRate(
        { ...{ type: "cosine_warmup_with_min_lr", peak: 1, warmupSteps, totalSteps: 6 }, kwargs: { ...kwargs } },
        done,
      ),
    );
  near(rates({ min_lr_rate: 0.1 }), [0.5, 1, ...down]);
  near(rates({ min_lr: 0.1, warmup_lr_rate: 0.3 }), [0.3, 1, ...down]);
  near(rates({ min_lr_rate: 0, num_cycles: 1 }, 0), [0.75, 0.25, 0, 0.25, 0.75, 1]);
});

test("warm-up, peak, decay, floor", () => {
  near(even("warmup_stable_decay", { num_decay_steps: 4, decay_type: "linear" }), [0, 1, 1, 1, 0.5, 0]);
  near(even("warmup_stable_decay", { num_decay_steps: 4, min_lr_ratio: 0.2 }), [0.2, 1, 1, 1, 0.6, 0.2]);
  near(even("warmup_stable_decay", { num_decay_steps: 4, num_stable_steps: 0, decay_type: "1-sqrt" }), [
    0,
    1,
    1 - Math.SQRT1_2,
    0,
    0,
    0,
  ]);
  const warm = { type: "warmup_stable_decay", peak: 1, warmupSteps: 4, totalSteps: 10 } as const;
  const at = (warmup_type: string, done: number) =>
    learningRate({ ...warm, kwargs: { num_decay_steps: 2, warmup_type } }, done);
  near([at("linear", 1), at("cosine", 2), at("1-sqrt", 3)], [0.25, 0.5, 0.5]);
});

test("kwargs that a schedule does not take, or lacks, are refused", () => {
  const problem = (lr_scheduler_type: LearningRateSettings["type"], lr_scheduler_kwargs = {}) =>
    schedulerProblem({ lr_scheduler_type, lr_scheduler_kwargs, learning_rate: 1e-4 });
  assert.match(problem("linear", { num_cycles: 2 })!, /of linear: .*"num_cycles"/);
  assert.match(problem("polynomial", { power: "x" })!, /of polynomial: power/);
  assert.match(problem("polynomial", { lr_end: 1e-3 })!, /lr_end 0.001 must lie below/);
  assert.match(problem("cosine_with_min_lr")!, /needs one of min_lr and min_lr_rate/);
  assert.match(problem("cosine_with_min_lr", { min_lr: 0, min_lr_rate: 0 })!, /needs one of/);
  assert.match(problem("warmup_stable_decay")!, /num_decay_steps/);
  assert.equal(problem("cosine_with_restarts", { num_cycles: 3 }), null);
  assert.equal(problem("constant"), null);
});
