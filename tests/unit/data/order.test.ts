import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import fc from "fast-check";
import { Mt19937, randperm } from "../../../src/data/mt19937.ts";
import { type OrderOptions, TrainingOrder } from "../../../src/data/order.ts";
import { shared } from "../shared-data.ts";

const options: OrderOptions = {
  rows: 24,
  strategy: "random",
  seed: 42,
  batchSize: 4,
  accumulation: 2,
  replicas: 1,
  dropLast: false,
  epochs: 3,
  maxSteps: -1,
};
const allBatches = (order: TrainingOrder, replica = 0) =>
  Array.from({ length: order.totalSteps }, (_, i) =>
    order.step(i + 1).batches[replica]!.map((batch) => [...batch]),
  ).flat();

describe("order of samples", () => {
  test("the generator's 10,000th word for the standard's seed", () => {
    const generator = new Mt19937(5489);
    assert.equal(generator.next(), 3499211612);
    for (let i = 2; i < 10_000; i++) generator.next();
    assert.equal(generator.next(), 4123659995);
  });

  test("torch.randperm, epoch after epoch", () => {
    const batches = allBatches(new TrainingOrder(options));
    assert.deepEqual(batches.slice(0, 2), [
      [6, 15, 22, 2],
      [10, 19, 3, 18],
    ]);
    assert.deepEqual(batches.slice(6, 8), [
      [4, 12, 7, 22],
      [9, 6, 5, 20],
    ]);
    assert.deepEqual(batches.at(-1), [16, 17, 0, 10]);
  });

  const golden = shared("goldens/training/qwen1-shuffled/expected.json");
  test("the whole golden run", { skip: golden === null }, () => {
    const expected = JSON.parse(readFileSync(golden!, "utf8")) as {
      sample_order: number[][];
      log_history: { epoch: number }[];
    };
    const order = new TrainingOrder(options);
    assert.deepEqual(allBatches(order), expected.sample_order);
    const epochs = expected.log_history.slice(0, -1).map(({ epoch }) => epoch);
    epochs.forEach((epoch, i) => {
      assert.ok(Math.abs(order.step(i + 1).epochAfter - epoch) < 1e-12);
    });
  });

  test("every epoch is a permutation, whatever the size", () => {
    fc.assert(
      fc.property(fc.nat(500), fc.nat(2 ** 31), (n, seed) => {
        const order = randperm(n, seed);
        assert.deepEqual(
          [...order].sort((a, b) => a - b),
          Array.from({ length: n }, (_, i) => i),
        );
      }),
    );
    assert.throws(() => randperm(2 ** 31, 1), { code: "PL_DATASET_INVALID" });
  });

  test("short accumulation at an epoch's end; steps can be asked for in any order", () => {
    const order = new TrainingOrder({ ...options, rows: 10, strategy: "sequential", accumulation: 2, epochs: 2 });
    assert.deepEqual([order.batchesPerEpoch, order.stepsPerEpoch, order.totalSteps, order.totalEpochs], [3, 2, 4, 2]);
    const short = order.step(2);
    assert.deepEqual(
      short.batches.map((batches) => batches.map((batch) => [...batch])),
      [[[8, 9]]],
    );
    assert.deepEqual([short.epoch, short.epochAfter], [0, 1]);
    assert.equal(order.step(3).epochAfter, 1 + 2 / 3);
    assert.deepEqual(order.step(2).batches[0]!.length, 1);
  });

  test("max_steps overrides epochs; fractions of an epoch round up", () => {
    assert.equal(new TrainingOrder({ ...options, maxSteps: 7 }).totalSteps, 7);
    assert.equal(new TrainingOrder({ ...options, maxSteps: 7 }).totalEpochs, 3);
    assert.equal(new TrainingOrder({ ...options, epochs: 0.5 }).totalSteps, 2);
  });

  test("dataloader_drop_last leaves the short batch out", () => {
    const order = new TrainingOrder({ ...options, rows: 11, strategy: "sequential", dropLast: true, epochs: 1 });
    assert.deepEqual(allBatches(order), [
      [0, 1, 2, 3],
      [4, 5, 6, 7],
    ]);
    assert.throws(() => new TrainingOrder({ ...options, rows: 3, dropLast: true }), { code: "PL_DATASET_INVALID" });
  });

  test("replicas take batches in turn; short tails wrap to the first samples", () => {
    const order = new TrainingOrder({
      ...options,
      rows: 10,
      strategy: "sequential",
      replicas: 2,
      accumulation: 1,
      epochs: 1,
    });
    assert.deepEqual(allBatches(order, 0), [
      [0, 1, 2, 3],
      [8, 9, 0, 1],
    ]);
    assert.deepEqual(allBatches(order, 1), [
      [4, 5, 6, 7],
      [2, 3, 4, 5],
    ]);
    const tiny = new TrainingOrder({
      ...options,
      rows: 3,
      strategy: "sequential",
      replicas: 2,
      accumulation: 1,
      epochs: 1,
    });
    assert.deepEqual(allBatches(tiny, 0), [[0, 1, 2, 0]]);
    assert.deepEqual(allBatches(tiny, 1), [[1, 2, 0, 1]]);
    const dropped = new TrainingOrder({
      ...options,
      rows: 21,
      strategy: "sequential",
      replicas: 2,
      dropLast: true,
      accumulation: 1,
      epochs: 1,
    });
    assert.deepEqual(allBatches(dropped, 1), [
      [4, 5, 6, 7],
      [12, 13, 14, 15],
    ]);
  });
});
