import assert from "node:assert/strict";
import { test } from "node:test";
import { chooseToken } from "../../../src/worker/sampling.ts";

const greedy = { doSample: false, temperature: 1, topP: 1, topK: 0, repetitionPenalty: 1 };
const sampling = { ...greedy, doSample: true };
const logits = (...values: number[]) => Float32Array.from(values);

test("greedy takes the largest logit, the lowest id on a tie", () => {
  assert.equal(chooseToken(logits(1, 3, 3, 2), new Set(), greedy, 0), 1);
});

test("repetition penalty divides positive and multiplies negative logits of seen tokens", () => {
  const settings = { ...greedy, repetitionPenalty: 2 };
  assert.equal(chooseToken(logits(3, 2, -1), new Set([0]), settings, 0), 1);
  assert.equal(chooseToken(logits(-1, -1.5, -3), new Set([0]), settings, 0), 1);
});

test("sampling follows the softmax", () => {
  const counts = [0, 0, 0];
  for (let i = 0; i < 6000; i++)
    counts[chooseToken(logits(Math.log(1), Math.log(2), Math.log(3)), new Set(), sampling, i / 6000)]!++;
  assert.deepEqual(
    counts.map((count) => Math.round(count / 100)),
    [10, 20, 30],
  );
});

test("top-k and top-p cut the tail, the likeliest token always stays", () => {
  const values = () => logits(Math.log(0.5), Math.log(0.3), Math.log(0.2));
  const ids = (settings: typeof sampling) =>
    new Set(Array.from({ length: 100 }, (_, i) => chooseToken(values(), new Set(), settings, i / 100)));
  assert.deepEqual(ids({ ...sampling, topK: 2 }), new Set([0, 1]));
  assert.deepEqual(ids({ ...sampling, topP: 0.6 }), new Set([0, 1]));
  assert.deepEqual(ids({ ...sampling, topP: 0.01 }), new Set([0]));
  assert.deepEqual(ids(sampling), new Set([0, 1, 2]));
});

test("a low temperature sharpens", () => {
  const cold = { ...sampling, temperature: 0.01 };
  for (let i = 0; i < 100; i++) assert.equal(chooseToken(logits(1, 1.5), new Set(), cold, i / 100), 1);
});
