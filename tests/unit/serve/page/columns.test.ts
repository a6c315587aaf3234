import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { StepColumns, type StepRow } from "../../../../src/serve/page/columns.ts";

const row = (step: number, loss: number | null): StepRow => ({
  ...{ step, loss, learningRate: 1 / step, gradientNorm: loss === null ? null : loss / 2, tokens: 10 * step, ms: 5 },
});
const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
const near = (a: number, b: number) =>
  assert.ok(Math.abs(a - b) <= 1e-5 * Math.max(1, Math.abs(b)), `${a} is not ${b}`);

/** Steps that ascend, but for restarts that go back some. */
const history = fc.array(fc.record({ back: fc.integer({ min: 0, max: 9 }), steps: fc.integer({ min: 1, max: 60 }) }), {
  minLength: 1,
  maxLength: 5,
});
const loss = (step: number, run: number) => (step % 11 === 3 ? null : ((step * 7919) % 97) / 10 + run);

test("points: the steps of one run, whatever restarts there were; mean, least and most of what they stand for", () => {
  fc.assert(
    fc.property(history, fc.integer({ min: 1, max: 70 }), (parts, most) => {
      const columns = new StepColumns();
      let expected: [number, number | null][] = [];
      for (const [run, { back, steps }] of parts.entries()) {
        const first = Math.max(1, (expected.at(-1)?.[0] ?? 0) + 1 - back);
        expected = expected.filter(([step]) => step < first);
        for (let step = first; step < first + steps; step++) {
          columns.add(row(step, loss(step, run)));
          expected.push([step, loss(step, run)]);
        }
      }
      const raw = columns.since(0);
      assert.deepEqual(
        raw.step.map((step, at) => [step, raw.loss[at]]),
        expected,
      );
      const points = columns.between(0, Number.MAX_SAFE_INTEGER, most);
      assert.equal(points.step.length, Math.min(most, expected.length));
      assert.equal(points.step.at(-1), expected.at(-1)![0]);
      let before = 0;
      for (const [at, step] of points.step.entries()) {
        const own = expected.filter(([one]) => one > before && one <= step);
        const losses = own.flatMap(([, value]) => (value === null ? [] : [value]));
        before = step;
        if (losses.length === 0) assert.equal(points.loss[at], null);
        else {
          near(points.loss[at]!, mean(losses));
          near(points.lossLow[at]!, Math.min(...losses));
          near(points.lossHigh[at]!, Math.max(...losses));
          near(points.gradientNorm[at]!, mean(losses) / 2);
          near(points.gradientNormHigh[at]!, Math.max(...losses) / 2);
        }
        near(points.tokensPerSecond[at]!, 2000 * mean(own.map(([one]) => one)));
        near(points.learningRate[at]!, 1 / step);
      }
    }),
    { numRuns: 200 },
  );
});

test("however many steps there are, so many rows are held: nothing of the least, the most and the mean is lost", () => {
  const columns = new StepColumns(0, 64);
  const count = 10_007;
  for (let step = 1; step <= count; step++) columns.add(row(step, step === 5_000 ? 1000 : step % 10));
  assert.ok(columns.length <= 64);
  assert.deepEqual([columns.firstStep, columns.lastStep], [1, count]);
  const points = columns.since(0);
  assert.equal(Math.max(...points.lossHigh.map(Number)), 1000);
  assert.equal(Math.min(...points.lossLow.map(Number)), 0);
  const [whole] = columns.between(0, count, 1).loss;
  near(whole!, mean(Array.from({ length: count }, (_, at) => (at + 1 === 5_000 ? 1000 : (at + 1) % 10))));
});

test("a generation is another one when rows that were told have changed, and only then", () => {
  const columns = new StepColumns(7, 8);
  const generations = new Set([columns.generation]);
  for (let step = 1; step <= 8; step++) columns.add(row(step, step));
  assert.deepEqual([...generations], [columns.generation]);
  columns.add(row(9, 9));
  assert.ok(!generations.has(columns.generation), "rows were joined");
  generations.add(columns.generation);
  columns.add(row(4, 4));
  assert.ok(!generations.has(columns.generation), "steps are done again");
  assert.equal(columns.lastStep, 4);
});

test("a part of the steps, and what is not known", () => {
  const columns = new StepColumns();
  assert.deepEqual(columns.between(0, 100, 10).step, []);
  assert.deepEqual(columns.recent(20), { tokensPerSecond: null, msPerStep: null });
  for (let step = 10; step <= 30; step++) {
    columns.add({ step, loss: step, learningRate: null, gradientNorm: null, tokens: null, ms: null });
  }
  const { step, learningRate, tokensPerSecond } = columns.between(12, 15, 100);
  assert.deepEqual(step, [12, 13, 14, 15]);
  assert.deepEqual([learningRate[0], tokensPerSecond[0]], [null, null]);
  assert.deepEqual(columns.between(31, 99, 100).step, []);
  assert.deepEqual(columns.recent(20), { tokensPerSecond: null, msPerStep: null });
});
