import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { mixSets } from "../../../src/data/mixture.ts";

const sizes = fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1, maxLength: 6 });

/** Which set each row of the epoch comes from. */
function setsOf(rows: Uint32Array, lengths: readonly number[]): { set: number; row: number }[] {
  const bases = lengths.map((_, set) => lengths.slice(0, set).reduce((sum, size) => sum + size, 0));
  return Array.from(rows, (row) => {
    const set = bases.findLastIndex((base) => base <= row);
    return { set, row: row - bases[set]! };
  });
}

test("without weights every row comes once, each set in its own order, and is spread evenly", () => {
  fc.assert(
    fc.property(sizes, (lengths) => {
      const rows = mixSets(
        lengths,
        lengths.map(() => null),
      );
      const total = lengths.reduce((sum, size) => sum + size, 0);
      assert.deepEqual(
        [...rows].sort((a, b) => a - b),
        Array.from({ length: total }, (_, row) => row),
      );
      const taken = lengths.map(() => 0);
      for (const [at, { set, row }] of setsOf(rows, lengths).entries()) {
        assert.equal(row, taken[set]);
        taken[set]! += 1;
        const due = ((at + 1) * lengths[set]!) / total;
        assert.ok(Math.abs(taken[set]! - due) <= lengths.length, `${taken[set]} of ${due}`);
      }
    }),
  );
});

test("one set is as it is, with a weight or without", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 500 }), fc.constantFrom(null, 0.3, 7), (size, weight) => {
      assert.deepEqual(
        [...mixSets([size], [weight])],
        Array.from({ length: size }, (_, row) => row),
      );
    }),
  );
});

test("with weights the shares are theirs to a row, every set comes whole, and one of them just so", () => {
  const weighted = fc.array(fc.tuple(fc.integer({ min: 1, max: 200 }), fc.double({ min: 0.05, max: 1, noNaN: true })), {
    minLength: 1,
    maxLength: 5,
  });
  fc.assert(
    fc.property(weighted, (sets) => {
      const lengths = sets.map(([size]) => size);
      const sum = sets.reduce((total, [, weight]) => total + weight, 0);
      const rows = mixSets(
        lengths,
        sets.map(([, weight]) => weight),
      );
      const came = lengths.map((size) => new Array<number>(size).fill(0));
      for (const { set, row } of setsOf(rows, lengths)) came[set]![row]! += 1;
      for (const [set, [, weight]] of sets.entries()) {
        const share = came[set]!.reduce((total, times) => total + times, 0);
        assert.ok(Math.abs(share - (rows.length * weight) / sum) <= 1 + 1e-6, `${share} of ${rows.length}`);
        assert.ok(Math.min(...came[set]!) >= 1);
        assert.ok(Math.max(...came[set]!) - Math.min(...came[set]!) <= 1, "rows come again in turn");
      }
      assert.ok(
        came.some((times) => times[0]! <= 2 && times.at(-1) === 1),
        "no set comes whole twice in all",
      );
    }),
  );
});

test("scaling all weights changes nothing; equal shares of equal sets are an alternation", () => {
  assert.deepEqual(mixSets([10, 30], [1, 2]), mixSets([10, 30], [50, 100]));
  assert.deepEqual([...mixSets([3, 3], [1, 1])], [0, 3, 1, 4, 2, 5]);
  assert.deepEqual([...mixSets([2, 4], [1, 1])].length, 8);
});

test("weights for some sets alone, or worlds apart, are refused", () => {
  assert.throws(() => mixSets([3, 3], [1, null]), { code: "PL_DATASET_INVALID", message: /1 of 2/ });
  assert.throws(() => mixSets([3, 300], [1, 1e-9]), { code: "PL_DATASET_INVALID" });
});
