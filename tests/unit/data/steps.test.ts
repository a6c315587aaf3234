import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { Dataset } from "../../../src/data/dataset.ts";
import { cutMicroBatches, packMicroBatches } from "../../../src/data/micro-batches.ts";
import { TrainingOrder } from "../../../src/data/order.ts";
import { RowStore } from "../../../src/data/row-store.ts";
import { splitRows } from "../../../src/data/split.ts";
import { evaluationRows, trainingStep, type WeightedRow } from "../../../src/data/steps.ts";

/** Rows of the given lengths; the first `masked` tokens of each carry no label. */
function datasetOf(lengths: readonly number[], masked = 1): Dataset {
  const store = new RowStore();
  lengths.forEach((length, row) => {
    const tokens = Array.from({ length }, (_, t) => row * 100 + t);
    store.add({ tokens, labels: tokens.map((id, t) => (t < masked ? -100 : id)) });
  });
  return new Dataset(store);
}

const order = (rows: number, replicas: number) =>
  new TrainingOrder({
    rows,
    strategy: "sequential",
    seed: 1,
    batchSize: 2,
    accumulation: 2,
    replicas,
    dropLast: false,
    epochs: 1,
    maxSteps: -1,
  });
/** Each row as it is sent: targets and weights beside its tokens. */
const laid = (rows: readonly WeightedRow[]) => rows.map((row) => packMicroBatches([[row]]));
const weightSum = (rows: readonly WeightedRow[]) =>
  laid(rows)
    .flatMap(({ weights }) => [...weights])
    .reduce((sum, weight) => sum + weight, 0);
const near = (found: number, expected: number) =>
  assert.ok(Math.abs(found - expected) < 1e-6, `${found} vs ${expected}`);

describe("training steps", () => {
  test("targets are the next labels within the row, the last none", () => {
    const { rows } = trainingStep(datasetOf([4, 3], 2), order(2, 1).step(1), "step-token-mean");
    assert.deepEqual([...rows[0]![0]!.tokens], [0, 1, 2, 3]);
    const [first, second] = laid(rows[0]!);
    assert.deepEqual([...first!.targets], [-100, 2, 3, -100]);
    assert.deepEqual([...second!.targets], [-100, 102, -100]);
    const third = Math.fround(1 / 3);
    assert.deepEqual([...first!.weights], [0, third, third, 0]);
    assert.deepEqual(
      rows[0]!.map(({ rowId }) => rowId),
      [0, 1],
    );
  });

  test("step-token-mean: one weight for all label tokens of the step, over all replicas", () => {
    const dataset = datasetOf([3, 5, 2, 7, 4, 6, 3, 2]);
    for (const replicas of [1, 2]) {
      const step = trainingStep(dataset, order(8, replicas).step(1), "step-token-mean");
      const rows = step.rows.flat();
      const labels = rows.reduce((sum, row) => sum + row.tokens.length - 1, 0);
      assert.equal(step.labelTokens, labels);
      assert.ok(laid(rows).every(({ weights }) => weights[0] === Math.fround(1 / labels)));
      near(weightSum(rows), 1);
    }
  });

  test("micro-batch-mean: each batch weighs the same, whatever its label tokens", () => {
    const dataset = datasetOf([3, 5, 20, 7]);
    const rows = trainingStep(dataset, order(4, 1).step(1), "micro-batch-mean").rows[0]!;
    near(weightSum(rows.slice(0, 2)), 0.5);
    near(weightSum(rows.slice(2)), 0.5);
    assert.equal(laid(rows)[0]!.weights[0], Math.fround(1 / (6 * 2)));
    const replicas = trainingStep(datasetOf([3, 5, 20, 7, 4, 4, 4, 4]), order(8, 2).step(1), "micro-batch-mean");
    for (const replica of replicas.rows) near(weightSum(replica), 0.5);
    assert.deepEqual(
      replicas.rows.flat().map(({ rowId }) => rowId),
      // Batches go to the replicas in turn, and rows are numbered as they come.
      [0, 1, 4, 5, 2, 3, 6, 7],
    );
  });

  test("a short last step of micro-batch-mean averages over the batches it has", () => {
    const step = trainingStep(datasetOf([3, 3, 3, 3, 3, 3]), order(6, 1).step(2), "micro-batch-mean");
    assert.equal(step.rows[0]!.length, 2);
    near(weightSum(step.rows[0]!), 1);
  });

  test("a batch without label tokens adds nothing and breaks nothing", () => {
    const store = new RowStore();
    for (const label of [-100, -100, 5, 5]) store.add({ tokens: [1, 5], labels: [-100, label] });
    const { rows, labelTokens } = trainingStep(new Dataset(store), order(4, 1).step(1), "micro-batch-mean");
    assert.equal(labelTokens, 2);
    assert.deepEqual(
      laid(rows[0]!).map(({ weights }) => weights[0]),
      [0, 0, 0.25, 0.25],
    );
  });

  test("a label's own weight counts in both sums: the loss is the weighted mean", () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.float({ min: 0.0625, max: 16, noNaN: true }), { minLength: 2, maxLength: 9 }), {
          minLength: 4,
          maxLength: 9,
        }),
        fc.constantFrom("step-token-mean" as const, "micro-batch-mean" as const),
        fc.integer({ min: 1, max: 4 }),
        (weights, rule, count) => {
          const store = new RowStore();
          for (const own of weights) {
            const tokens = own.map((_weight, t) => t + 1);
            store.add({ tokens, labels: tokens.map((id, t) => (t % 3 === 0 ? -100 : id)), weights: own });
          }
          const dataset = new Dataset(store);
          // Any loss a token, by row and position.
          const lossOf = (row: number, t: number) => Math.sin(row * 17 + t) + 2;
          const step = order(dataset.size, 1).step(1);
          const { rows } = trainingStep(dataset, step, rule);
          const mean = (chosen: readonly number[]) => {
            const labels = chosen.flatMap((row) =>
              weights[row]!.flatMap((weight, t) => (t > 0 && t % 3 !== 0 ? [{ weight, loss: lossOf(row, t) }] : [])),
            );
            return (
              labels.reduce((sum, { weight, loss }) => sum + weight * loss, 0) /
              labels.reduce((sum, { weight }) => sum + weight, 0)
            );
          };
          const batches = step.batches[0]!.map((batch) => [...batch]);
          const expected =
            rule === "step-token-mean"
              ? mean(batches.flat())
              : batches.reduce((sum, batch) => sum + mean(batch), 0) / batches.length;
          let found = 0;
          for (const batch of cutMicroBatches(rows[0]!, { count })) {
            const packed = packMicroBatches([batch]);
            let at = 0;
            for (const row of batch) {
              for (let t = 0; t + 1 < row.tokens.length; t++)
                found += packed.weights[at + t]! * lossOf(row.rowId, t + 1);
              at += row.tokens.length;
            }
          }
          near(found / expected, 1);
        },
      ),
    );
  });

  test("evaluation: batch means weighted by their rows add up to eval_loss", () => {
    const dataset = datasetOf([3, 5, 2, 7, 9]);
    const rows = [...evaluationRows(dataset, 2)];
    assert.deepEqual(
      rows.map(({ rowId }) => rowId),
      [0, 1, 2, 3, 4],
    );
    for (const [i, sum] of [0.4, 0.4, 0.2].entries()) near(weightSum(rows.slice(2 * i, 2 * i + 2)), sum);
  });

  test("a held-out share: seeded, disjoint, in the file's order", () => {
    const { train, evaluation } = splitRows(20, 0.21, 7, "a.jsonl");
    assert.deepEqual([train.length, evaluation.length], [15, 5]);
    const ascending = (rows: readonly number[]) => [...rows].sort((a, b) => a - b);
    assert.deepEqual(
      ascending([...train, ...evaluation]),
      Array.from({ length: 20 }, (_, row) => row),
    );
    assert.deepEqual(train, ascending(train));
    assert.deepEqual(splitRows(20, 0.21, 7, "a.jsonl").evaluation, evaluation);
    assert.notDeepEqual(splitRows(20, 0.21, 8, "a.jsonl").evaluation, evaluation);
    assert.throws(() => splitRows(20, 1, 7, "a.jsonl"), { code: "PL_DATASET_INVALID", message: /a\.jsonl/ });
  });

  test("statistics", () => {
    const { statistics } = datasetOf([1, 4, 6], 2);
    assert.deepEqual(
      [statistics.rows, statistics.totalTokens, statistics.labelTokens, statistics.max, statistics.unlabelled],
      [3, 11, 6, 6, 1],
    );
  });
});

describe("micro-batches", () => {
  const rowsOf = (lengths: readonly number[]) => lengths.map((length) => ({ tokens: new Int32Array(length) }));
  const tokensOf = (batch: readonly { tokens: Int32Array }[]) => batch.reduce((sum, row) => sum + row.tokens.length, 0);
  const lengths = fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 40 });

  /** Smallest largest part over every cut into `count` parts, by dynamic programming. */
  function bestLargest(sizes: readonly number[], count: number): number {
    let best = sizes.map((_, i) => sizes.slice(0, i + 1).reduce((sum, size) => sum + size, 0));
    for (let parts = 2; parts <= count; parts++) {
      best = sizes.map((_, end) => {
        let least = best[end]!;
        for (let cut = 1; cut <= end; cut++) {
          const last = sizes.slice(cut, end + 1).reduce((sum, size) => sum + size, 0);
          least = Math.min(least, Math.max(best[cut - 1]!, last));
        }
        return least;
      });
    }
    return best.at(-1)!;
  }

  test("rows stay whole and in order; as many parts as asked for; the largest as small as can be", () => {
    fc.assert(
      fc.property(lengths, fc.integer({ min: 1, max: 8 }), (sizes, count) => {
        const rows = rowsOf(sizes);
        const batches = cutMicroBatches(rows, { count });
        assert.deepEqual(batches.flat(), rows);
        assert.equal(batches.length, Math.min(count, sizes.length));
        assert.ok(batches.every((batch) => batch.length > 0));
        assert.equal(Math.max(...batches.map(tokensOf)), bestLargest(sizes, Math.min(count, sizes.length)));
      }),
    );
  });

  test("a limit of tokens: none above it but single long rows, and no more parts than filling up needs", () => {
    fc.assert(
      fc.property(lengths, fc.integer({ min: 50, max: 1000 }), (sizes, maxTokens) => {
        const batches = cutMicroBatches(rowsOf(sizes), { maxTokens });
        const limit = Math.max(maxTokens, ...sizes);
        assert.ok(batches.every((batch) => tokensOf(batch) <= limit));
        let parts = 1;
        let room = limit;
        for (const size of sizes) {
          if (size > room) {
            parts += 1;
            room = limit;
          }
          room -= size;
        }
        assert.equal(batches.length, parts);
      }),
    );
    assert.deepEqual(cutMicroBatches([], { count: 3 }), []);
  });

  test("near-equal tokens", () => {
    assert.deepEqual(cutMicroBatches(rowsOf([10, 10, 10, 10, 10, 10]), { maxTokens: 40 }).map(tokensOf), [30, 30]);
    assert.deepEqual(cutMicroBatches(rowsOf([60, 10, 10, 10, 10]), { count: 3 }).map(tokensOf), [60, 20, 20]);
  });

  test("packing lays rows back to back", () => {
    const { rows } = trainingStep(datasetOf([4, 2]), order(2, 1).step(1), "step-token-mean");
    const packed = packMicroBatches([rows[0]!]);
    assert.deepEqual([...packed.tokens], [0, 1, 2, 3, 100, 101]);
    assert.deepEqual([...packed.targets], [1, 2, 3, -100, 101, -100]);
    assert.deepEqual([...packed.weights], [0.25, 0.25, 0.25, 0, 0.25, 0]);
    assert.deepEqual([...packed.batchRows], [2]);
    assert.deepEqual([...packed.rowTokens], [4, 2]);
    assert.deepEqual([...packed.rowIds], [0, 1]);
    assert.deepEqual([...packMicroBatches([[rows[0]![0]!], [rows[0]![1]!]]).batchRows], [1, 1]);
  });
});
