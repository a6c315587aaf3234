import assert from "node:assert/strict";
import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { type BestSettings, judge } from "../../../../src/coordinator/run/checkpoints/best.ts";
import { CheckpointStore } from "../../../../src/coordinator/run/checkpoints/checkpoint-store.ts";
import { initialState } from "../../../../src/coordinator/run/checkpoints/trainer-state.ts";
import { temporaryFolder } from "../../../support/processes/cli.ts";

const NOTHING: BestSettings = {
  load_best_model_at_end: false,
  metric_for_best_model: null,
  greater_is_better: null,
  early_stopping_patience: null,
  early_stopping_threshold: 0,
  save_strategy: "steps",
};

/** Judges evaluations of one metric one after the other; returns the state and the evaluation that stopped the run, if one did. */
function judged(settings: BestSettings, values: readonly number[], metric = "eval_loss") {
  const state = initialState();
  const bests: number[] = [];
  for (const [i, value] of values.entries()) {
    state.globalStep = 10 * (i + 1);
    const { isBest, stops } = judge(settings, { [metric]: value }, state);
    if (isBest) bests.push(state.globalStep);
    if (stops) return { state, bests, stoppedAt: i };
  }
  return { state, bests, stoppedAt: null };
}

test("nobody asked: no evaluation is the best, and nothing stops", () => {
  const { state, bests, stoppedAt } = judged(NOTHING, [3, 2, 1]);
  assert.deepEqual([state.bestMetric, state.bestGlobalStep, bests, stoppedAt], [null, null, [], null]);
});

test("less loss is better, more of anything else, unless it is said", () => {
  const load = { ...NOTHING, load_best_model_at_end: true };
  assert.deepEqual(judged(load, [3, 2, 2, 5]).bests, [10, 20]);
  assert.deepEqual(judged({ ...load, greater_is_better: true }, [3, 2, 5]).bests, [10, 30]);
  const speed = { ...load, metric_for_best_model: "samples_per_second" } as const;
  assert.deepEqual(judged(speed, [3, 2, 5], "eval_samples_per_second").bests, [10, 30]);
  const named = { ...load, metric_for_best_model: "eval_runtime" } as const;
  assert.deepEqual(judged(named, [3, 2, 5], "eval_runtime").bests, [10, 20]);
  assert.deepEqual(judged({ ...NOTHING, save_strategy: "best" }, [2, 1]).bests, [10, 20]);
  assert.deepEqual(judged(load, [Number.NaN, 2, Number.NaN]).bests, [20]);
});

test("early stopping counts as EarlyStoppingCallback does", () => {
  const stopping = (patience: number, threshold = 0) => ({
    ...NOTHING,
    early_stopping_patience: patience,
    early_stopping_threshold: threshold,
  });
  assert.equal(judged(stopping(2), [3, 4, 2, 3, 2.5, 1]).stoppedAt, 4);
  assert.equal(judged(stopping(1), [3, 2, 1]).stoppedAt, null);
  // Better by too little still is the best, and still wears patience out.
  const slow = judged(stopping(2, 0.5), [3, 2.9, 2.8, 1]);
  assert.deepEqual([slow.stoppedAt, slow.bests], [2, [10, 20, 30]]);
});

test("rotation keeps what the Trainer's keeps: never the best nor the newest, the oldest of the others first", async (t) => {
  const root = temporaryFolder(t);
  const losses = fc.array(fc.integer({ min: 0, max: 6 }), { minLength: 1, maxLength: 8 });
  await fc.assert(
    fc.asyncProperty(losses, fc.integer({ min: 1, max: 4 }), async (values, limit) => {
      for (const name of readdirSync(root)) rmSync(join(root, name), { recursive: true });
      const store = new CheckpointStore(root, limit);
      const state = initialState();
      let kept: string[] = [];
      for (const [i, loss] of values.entries()) {
        state.globalStep = i + 1;
        judge({ ...NOTHING, load_best_model_at_end: true }, { eval_loss: loss }, state);
        const name = `checkpoint-${state.globalStep}`;
        const best = `checkpoint-${state.bestGlobalStep}`;
        mkdirSync(join(root, name));
        const dropped = await store.saved(join(root, name), join(root, best));
        // transformers 5.17, _sorted_checkpoints and _rotate_checkpoints: the best is moved before the newest.
        let all = [...kept, name];
        if (best !== name) all = [...all.filter((one) => one !== best && one !== name), best, name];
        const room = limit === 1 && best !== name ? 2 : limit;
        const expected = all.slice(Math.max(0, all.length - room));
        assert.deepEqual(readdirSync(root).sort(), [...expected].sort());
        assert.deepEqual([...dropped].sort(), all.filter((one) => !expected.includes(one)).sort());
        kept = [...kept, name].filter((one) => expected.includes(one));
      }
      const best = `checkpoint-${state.bestGlobalStep}`;
      await store.finished(join(root, best));
      if (limit === 1) assert.deepEqual(readdirSync(root), [best]);
    }),
    { numRuns: 60 },
  );
});
