import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Dataset } from "../../../src/data/dataset.ts";
import { RowStore } from "../../../src/data/row-store.ts";

/** Rows as templates and ready ids make them: masked, foreign and own labels, with and without weights. */
const rows = fc.array(
  fc.record({
    tokens: fc.array(fc.integer({ min: 0, max: 300_000 }), { minLength: 1, maxLength: 40 }),
    kinds: fc.array(fc.constantFrom("own", "own", "masked", "foreign"), { minLength: 40, maxLength: 40 }),
    plain: fc.boolean(),
    weights: fc.option(fc.array(fc.float({ min: 0.125, max: 8, noNaN: true }), { minLength: 40, maxLength: 40 })),
    cut: fc.boolean(),
    lost: fc.boolean(),
    /** Far beyond a chunk together. */
    times: fc.constantFrom(1, 1, 1, 3000, 9000),
  }),
  { minLength: 1, maxLength: 12 },
);

test("rows come out as they went in, however they fall into chunks", () => {
  fc.assert(
    fc.property(rows, (drawn) => {
      const store = new RowStore();
      const all = drawn.map(({ tokens: some, kinds, plain, weights: given, cut, lost, times }) => {
        const tokens = Array.from({ length: some.length * times }, (_, t) => some[t % some.length]!);
        const labels = tokens.map((token, t) => {
          const kind = kinds[t % 40];
          return kind === "masked" ? -100 : kind === "foreign" && !plain ? (token + 1) % 1000 : token;
        });
        const weights = given === null ? null : tokens.map((_token, t) => given[t % 40]!);
        store.add({ tokens, labels, weights }, cut, lost);
        return { tokens, labels, weights, cut, lost };
      });
      const dataset = new Dataset(store);
      for (const [index, { tokens, labels, weights }] of all.entries()) {
        const row = dataset.row(index);
        assert.deepEqual([...row.tokens], tokens);
        assert.deepEqual([...row.labels], labels);
        const one = new Array<number>(tokens.length).fill(1);
        assert.deepEqual([...(row.weights ?? one)], weights ?? one);
        const trained = labels.flatMap((label, t) => (t > 0 && label !== -100 ? [t] : []));
        assert.equal(dataset.lossTokens(index), trained.length);
        const weight = trained.reduce((sum, t) => sum + (weights?.[t] ?? 1), 0);
        assert.ok(Math.abs(dataset.lossWeight(index) - weight) <= 1e-9 * weight);
      }
      const { truncated, textLost, labelTokens, totalTokens } = dataset.statistics;
      assert.equal(truncated, all.filter(({ cut }) => cut).length);
      assert.equal(textLost, all.filter(({ lost }) => lost).length);
      assert.equal(
        totalTokens,
        all.reduce((sum, { tokens }) => sum + tokens.length, 0),
      );
      assert.equal(labelTokens, all.flatMap(({ labels }) => labels.filter((label) => label !== -100)).length);
    }),
    { numRuns: 25 },
  );
});

test("a row longer than a chunk, and many short ones, keep their places", () => {
  const store = new RowStore();
  const long = Int32Array.from({ length: 700_001 }, (_, t) => t);
  store.add({ tokens: [1, 2], labels: [-100, 2] });
  store.add({ tokens: long, labels: long });
  for (let row = 0; row < 5000; row++) store.add({ tokens: [row, row], labels: [-100, row] });
  const dataset = new Dataset(store).select([5001, 1, 0, 1]);
  assert.deepEqual([...dataset.row(0).labels], [-100, 4999]);
  assert.deepEqual(dataset.row(3).labels, long);
  assert.equal(dataset.statistics.max, 700_001);
});
