import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { defaultConfig } from "../../../src/config/load.ts";
import type { ModelSetup } from "../../../src/coordinator/planning/model-setup.ts";
import { planFor } from "../../../src/coordinator/planning/planning.ts";
import type { TrainingData } from "../../../src/coordinator/planning/training-data.ts";
import { roundWorkload, trainingWorkload } from "../../../src/coordinator/planning/workload.ts";
import { stepSource } from "../../../src/coordinator/run/steps/step-source.ts";
import { Dataset } from "../../../src/data/dataset.ts";
import { type OrderOptions, TrainingOrder } from "../../../src/data/order.ts";
import { RowStore } from "../../../src/data/row-store.ts";
import { pairMatrices } from "../../../src/models/kinds/lora.ts";
import { NO_OVERRIDES } from "../../../src/plan/index.ts";
import { cpus, everyLinear, gpus, model } from "../plan/models.ts";

function dataOf(
  lengths: readonly number[],
  options: Partial<OrderOptions>,
): Pick<TrainingData, "train" | "evaluation" | "order"> {
  const store = new RowStore();
  for (const length of lengths) {
    const tokens = new Int32Array(length).fill(7);
    // Every third token is trained on.
    store.add({ tokens, labels: tokens.map((token, at) => (at % 3 === 1 ? token : -100)) });
  }
  const train = new Dataset(store);
  const order = new TrainingOrder({
    ...{ rows: train.size, strategy: "random", seed: 42, batchSize: 1, accumulation: 1, replicas: 1 },
    ...{ dropLast: false, epochs: 1, maxSteps: -1, ...options },
  });
  return { train, evaluation: null, order };
}

function setupOf(name: string): ModelSetup {
  const spec = model(name);
  return {
    ...{
      name,
      dir: "/nowhere",
      hub: null,
      spec,
      checkpoint: null,
      adapter: null,
      holdDtype: "bfloat16",
      packed: new Map(),
    },
    lora: {
      targets: everyLinear(spec, 8),
      matrices: everyLinear(spec, 8).flatMap(pairMatrices),
    } as unknown as ModelSetup["lora"],
    ...{ quantization: null, warnings: [] },
  };
}

test("a plan's largest and mean micro-batch are those of the steps that will run, whatever order, replicas and cut", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 2, max: 60 }), { minLength: 8, maxLength: 60 }),
      fc.record({
        strategy: fc.constantFrom("random", "sequential"),
        seed: fc.nat(1000),
        batchSize: fc.integer({ min: 1, max: 3 }),
        accumulation: fc.integer({ min: 1, max: 3 }),
        replicas: fc.integer({ min: 1, max: 2 }),
        dropLast: fc.boolean(),
        epochs: fc.constantFrom(1, 2.5, 3),
      }),
      fc.option(fc.integer({ min: 10, max: 200 })),
      async (lengths, options, tokensLimit) => {
        const data = dataOf(lengths, options as Partial<OrderOptions>);
        const { replicas, batchSize, accumulation } = data.order.options;
        const config = {
          ...defaultConfig(),
          ...{ replicas, micro_batch_tokens: tokensLimit, per_device_train_batch_size: batchSize },
          gradient_accumulation_steps: accumulation,
        };
        const cut = trainingWorkload(config, data).fixed(cpus(1));
        const work = await cut.work(false);
        const source = stepSource(data, model("qwen2.5-0.5b"), cut.size, cut.replicas);
        const seen = { microBatches: 0, tokens: 0, total: 0 };
        for (let step = 1; step <= source.maxSteps; step++) {
          for (const { batchRows, rowTokens } of (await source.at(step)).batches) {
            seen.microBatches = Math.max(seen.microBatches, batchRows.length);
            let row = 0;
            for (const rows of batchRows) {
              const tokens = rowTokens.subarray(row, row + rows).reduce((sum, length) => sum + length, 0);
              row += rows;
              seen.tokens = Math.max(seen.tokens, tokens);
              seen.total += tokens;
            }
          }
        }
        assert.equal(work.microBatches, Math.max(1, seen.microBatches));
        assert.equal(work.tokens, seen.tokens);
        assert.equal(work.meanTokens, seen.total / (source.maxSteps * cut.replicas * work.microBatches));
      },
    ),
    { numRuns: 200 },
  );
});

/** Most of a processor's time between two turns of the event loop while `work` is under way, in milliseconds: others may have the processor. */
async function longestHold(work: () => Promise<unknown>): Promise<number> {
  let longest = 0;
  let last = process.cpuUsage();
  const look = () => {
    const { user, system } = process.cpuUsage(last);
    longest = Math.max(longest, (user + system) / 1000);
    last = process.cpuUsage();
  };
  const turns = setInterval(look, 1);
  await work();
  clearInterval(turns);
  look();
  return longest;
}

for (const { where, devices } of [
  { where: "two CPU workers", devices: cpus(2) },
  { where: "four GPUs", devices: gpus(4) },
]) {
  test(`planning a million steps over ${where} leaves the event loop its turns`, { timeout: 120_000 }, async (t) => {
    const lengths = Array.from({ length: 250_000 }, (_, row) => 3 + (row % 14));
    const data = dataOf(lengths, { epochs: 4 });
    assert.equal(data.order.totalSteps, 1_000_000);
    const config = { ...defaultConfig(), per_device_train_batch_size: 1, gradient_accumulation_steps: 1 };
    const holds: number[] = [];
    // The machine itself may stand still for a moment: twice would be a coincidence, three times is the planner.
    for (let attempt = 0; attempt < 3 && (holds.length === 0 || Math.min(...holds) > 200); attempt++) {
      const plan = () =>
        planFor(config, setupOf("qwen2.5-0.5b"), devices, {
          workload: roundWorkload([trainingWorkload(config, data)]),
          rates: NO_OVERRIDES,
        });
      holds.push(await longestHold(plan));
    }
    t.diagnostic(`held ${holds.map((ms) => Math.round(ms)).join(", ")} ms at most`);
    assert.ok(Math.min(...holds) <= 200, `${holds.join(", ")} ms`);
  });
}

test("an epoch's first step leaves the event loop its turns, whatever the number of rows", async (t) => {
  const data = dataOf(new Array<number>(1_500_000).fill(2), { epochs: 2, batchSize: 8 });
  const source = stepSource(data, model("qwen2.5-0.5b"), { maxTokens: 100 }, 1);
  const holds: number[] = [];
  for (let attempt = 0; attempt < 3 && (holds.length === 0 || Math.min(...holds) > 60); attempt++) {
    await source.at(1);
    holds.push(await longestHold(() => source.at(data.order.stepsPerEpoch + 1)));
  }
  t.diagnostic(`held ${holds.map((ms) => Math.round(ms)).join(", ")} ms at most`);
  assert.ok(Math.min(...holds) <= 60, `${holds.join(", ")} ms`);
});

test("what holds the event loop is seen", async () => {
  const hold = await longestHold(async () => {
    const began = process.cpuUsage();
    while (process.cpuUsage(began).user < 300_000);
  });
  assert.ok(hold > 200, `${hold} ms`);
});
