import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { PipeloraError } from "../../../src/common/errors.ts";
import { atOnce } from "../../../src/common/slices.ts";
import { defaultConfig } from "../../../src/config/load.ts";
import type { Config } from "../../../src/config/options.ts";
import { evaluationShape } from "../../../src/coordinator/planning/batch-shape.ts";
import type { ModelSetup } from "../../../src/coordinator/planning/model-setup.ts";
import { type ChosenPlan, planFor } from "../../../src/coordinator/planning/planning.ts";
import type { TrainingData } from "../../../src/coordinator/planning/training-data.ts";
import {
  fullRowsWorkload,
  roundWorkload,
  trainingWorkload,
  type Workload,
} from "../../../src/coordinator/planning/workload.ts";
import { evaluationOf } from "../../../src/coordinator/run/steps/step-source.ts";
import { Dataset } from "../../../src/data/dataset.ts";
import { cutMicroBatches, type PackedMicroBatches, packMicroBatches } from "../../../src/data/micro-batches.ts";
import { TrainingOrder } from "../../../src/data/order.ts";
import { RowStore } from "../../../src/data/row-store.ts";
import { trainingStep } from "../../../src/data/steps.ts";
import { pairMatrices } from "../../../src/models/kinds/lora.ts";
import { takenBytes } from "../../../src/plan/arena.ts";
import { type Device, MOST_TOKENS, NO_OVERRIDES } from "../../../src/plan/index.ts";
import { cpus, everyLinear, GIB, gpus, model, NF4 } from "../plan/models.ts";

function setup(name: string, r: number, quantised: boolean): ModelSetup {
  const spec = model(name);
  const targets = everyLinear(spec, r);
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
    lora: { targets, matrices: targets.flatMap(pairMatrices) } as unknown as ModelSetup["lora"],
    quantization: quantised
      ? ({ settings: NF4.quantization, skipped: [] } as unknown as ModelSetup["quantization"])
      : null,
    warnings: [],
  };
}

function settings(changes: Partial<Config>): Config {
  return { ...defaultConfig(), ...changes };
}

function planned(
  config: Config,
  made: ModelSetup,
  devices: readonly Device[],
  workload?: Workload,
): Promise<ChosenPlan> {
  return planFor(config, made, devices, {
    workload: workload ?? roundWorkload([fullRowsWorkload(config)]),
    rates: NO_OVERRIDES,
  });
}

async function ifItFits(plan: Promise<ChosenPlan>): Promise<ChosenPlan | null> {
  try {
    return await plan;
  } catch (error) {
    if (error instanceof PipeloraError && error.code === "PL_PLACEMENT_INFEASIBLE") return null;
    throw error;
  }
}

/** On GPUs, arenas counted as they are allocated. */
function staysWithin({ plan }: ChosenPlan): boolean {
  return plan.devices.every(({ memory }) => takenBytes(memory, "cuda") <= memory.budget);
}

const speed = ({ plan }: ChosenPlan) => plan.predicted!.tokensPerSecond;
const batches = async ({ cut }: ChosenPlan) => (await cut.work(false)).microBatches;

test("on GPUs no --micro-batch-tokens that fits is predicted faster than the default", async () => {
  const seen = { several: 0, one: 0, fitting: 0 };
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        name: fc.constantFrom("qwen2.5-0.5b", "qwen2.5-7b", "llama-3-8b"),
        r: fc.constantFrom(1, 8, 64, 256),
        quantised: fc.boolean(),
        count: fc.constantFrom(1, 1, 2, 3, 4),
        memory: fc.constantFrom(10, 16, 24, 48, 140),
        rows: fc.integer({ min: 1, max: 24 }),
        rowTokens: fc.constantFrom(64, 384, 1000, 4096),
        device_map: fc.constantFrom(
          "auto" as const,
          "balanced" as const,
          "balanced_low_0" as const,
          "sequential" as const,
          "fastest" as const,
        ),
        gradient_checkpointing: fc.constantFrom(true, false, "auto" as const),
        weight_cache: fc.constantFrom("off" as const, "auto" as const),
        schedule: fc.constantFrom("1f1b" as const, "gpipe" as const, "sequential" as const),
      }),
      async ({ name, r, quantised, count, memory, rows, rowTokens, ...config }) => {
        const sizes = { max_length: rowTokens, per_device_train_batch_size: rows, gradient_accumulation_steps: 1 };
        const asked = {
          ...config,
          ...sizes,
          replicas: 1,
          weight_cache: quantised ? config.weight_cache : ("off" as const),
        };
        const made = setup(name, r, quantised);
        const devices = gpus(count, memory * GIB, "NVIDIA H200");
        const chosen = await ifItFits(planned(settings(asked), made, devices));
        const before = seen.fitting;
        for (let perBatch = 1; perBatch <= rows; perBatch++) {
          const explicit = { ...asked, micro_batch_tokens: perBatch * rowTokens };
          const other = await ifItFits(planned(settings(explicit), made, devices));
          if (other === null || !staysWithin(other)) continue;
          assert.ok(chosen !== null, "the default fits nowhere");
          const gain = speed(other) / speed(chosen) - 1;
          // Micro-batches beyond the most that is tried gain next to nothing.
          assert.ok(
            gain < (perBatch * rowTokens > MOST_TOKENS ? 0.01 : 0.001),
            `${perBatch} rows of ${rows} at a time are ${gain * 100} % faster than ${await batches(chosen)} pieces`,
          );
          seen.fitting++;
        }
        if (seen.fitting > before) assert.ok(staysWithin(chosen!), "the default takes more than there is");
        if (chosen !== null) seen[(await batches(chosen)) > 1 ? "several" : "one"]++;
      },
    ),
    { numRuns: 18, seed: 15 },
  );
  assert.ok(seen.one > 3 && seen.several > 3 && seen.fitting > 50, JSON.stringify(seen));
});

test("one GPU takes a step whole where it fits, `auto` as `fastest`, and the fewest pieces where it does not", async () => {
  const sizes = { max_length: 384, per_device_train_batch_size: 8, gradient_accumulation_steps: 1 };
  const made = setup("qwen2.5-7b", 8, true);
  for (const device_map of ["auto", "fastest", "balanced", "balanced_low_0", "sequential", { "": 0 }] as const) {
    const whole = await planned(settings({ ...sizes, device_map }), made, gpus(1, 140e9, "NVIDIA H200"));
    assert.equal(await batches(whole), 1, String(device_map));
  }
  const long = { ...sizes, max_length: 4096, device_map: "auto" as const };
  const tight = await planned(settings(long), made, gpus(1, 26 * GIB, "NVIDIA H200"));
  const fewest = await batches(tight);
  assert.ok(fewest > 1);
  const rowsHeld = Math.ceil(8 / fewest) + 1;
  const larger = settings({ ...long, micro_batch_tokens: rowsHeld * 4096 });
  assert.equal(await ifItFits(planned(larger, made, gpus(1, 26 * GIB, "NVIDIA H200"))), null);
});

test("what a GPU's engine does not compute is refused before a plan is made", async () => {
  const made = setup("qwen2.5-0.5b", 8, false);
  const wide = { ...made, spec: { ...made.spec, shape: { ...made.spec.shape, headDim: 320 } } };
  await assert.rejects(planned(settings({}), wide, gpus(1)), { code: "PL_MODEL_UNSUPPORTED" });
  assert.ok(await planned(settings({}), wide, cpus(1)));
});

test("a map of one's own is cut as it fits", async () => {
  const sizes = { max_length: 4096, per_device_train_batch_size: 16, gradient_accumulation_steps: 1 };
  const device_map = { "": 0 };
  const small = await planned(settings({ ...sizes, device_map }), setup("qwen2.5-7b", 8, true), gpus(1, 26 * GIB));
  assert.equal(small.plan.problem, null);
  assert.ok(staysWithin(small));
});

test("--deterministic-batches, and CPU workers, are cut alike on any number of devices", async () => {
  const sizes = { max_length: 384, per_device_train_batch_size: 16, gradient_accumulation_steps: 1 };
  const made = setup("qwen2.5-0.5b", 8, false);
  const of = (devices: Device[], changes: Partial<Config>) =>
    Promise.all(
      [1, 2, 4].map(
        async (count) =>
          await batches(await planned(settings({ ...sizes, ...changes }), made, devices.slice(0, count))),
      ),
    );
  for (const counts of [await of(gpus(4), { deterministic_batches: true }), await of(cpus(4), {})]) {
    assert.equal(new Set(counts).size, 1, counts.join());
  }
});

/** Rows of these lengths, every token but each row's first a label. */
function rowsOf(lengths: readonly number[]): Dataset {
  const store = new RowStore();
  for (const length of lengths) {
    const tokens = Array.from({ length }, (_, i) => i % 97);
    store.add({ tokens, labels: tokens.map((_token, i) => i % 89) });
  }
  return new Dataset(store);
}

function data(lengths: readonly number[], batchSize: number, evaluation: Dataset | null = null): TrainingData {
  const order = new TrainingOrder({
    ...{ rows: lengths.length, strategy: "random", seed: 15, batchSize, accumulation: 1, replicas: 1 },
    ...{ dropLast: false, epochs: 1, maxSteps: -1 },
  });
  return { train: rowsOf(lengths), evaluation, order, parts: [] };
}

test("a run that was cut before stays so on other devices as long as it fits", async () => {
  const config = settings({ device_map: "auto", per_device_train_batch_size: 16 });
  const made = setup("qwen2.5-7b", 8, true);
  const workload = roundWorkload([trainingWorkload(config, data(new Array<number>(64).fill(384), 16))]);
  const four = await planned(config, made, gpus(4), workload);
  const one = await planned(config, made, gpus(1), workload);
  assert.ok((await batches(four)) > (await batches(one)));
  const again = await planned(config, made, gpus(1), { ...workload, previous: four.cut });
  assert.deepEqual(again.cut.parts[0]!.size, four.cut.parts[0]!.size);
  const tiny = await planned(config, made, gpus(1, 8 * GIB), { ...workload, previous: one.cut });
  assert.ok((await batches(tiny)) >= (await batches(one)));
});

test("a cut changes neither rows nor labels nor weights", () => {
  const lengths = [5, 31, 2, 17, 9, 9, 40, 3, 1, 12];
  const training = data(lengths, 10);
  const { rows } = trainingStep(training.train, training.order.step(1), "step-token-mean");
  const flat = rows.flat();
  const whole = packMicroBatches([flat]);
  for (let count = 1; count <= flat.length; count++) {
    const cut = packMicroBatches(cutMicroBatches(flat, { count }));
    for (const key of ["rowTokens", "rowIds", "tokens", "targets", "weights"] as const) {
      assert.deepEqual(cut[key], whole[key], `${key} in ${count}`);
    }
  }
});

test("evaluation is cut to what memory was planned for, its longest row included", async () => {
  const held = rowsOf(new Array<number>(50).fill(100).concat([700]));
  const config = settings({ per_device_train_batch_size: 4 });
  const training = data(new Array<number>(16).fill(100), 4, held);
  const cut = trainingWorkload(config, training).fixed(gpus(1));
  const { tokens, evaluation } = await cut.work(false);
  assert.ok(tokens >= 700);
  assert.equal(evaluation?.rows, 51);
  const { plan } = await planned(
    config,
    setup("qwen2.5-7b", 8, true),
    gpus(1),
    roundWorkload([trainingWorkload(config, training)]),
  );
  assert.ok(plan.predicted!.evaluationMs! > 0);
  for (const packed of evaluationOf(held, 8, tokens, 1).parts()) assert.ok(Math.max(...tokensOf(packed)) <= tokens);
});

/** Tokens of each micro-batch of all replicas. */
function tokensOf(packed: readonly PackedMicroBatches[]): number[] {
  return packed.flatMap(({ batchRows, rowTokens }) => {
    let row = 0;
    return Array.from(batchRows, (rows) => {
      row += rows;
      return rowTokens.subarray(row - rows, row).reduce((sum, length) => sum + length, 0);
    });
  });
}

for (const { rows, length, replicas } of [
  { rows: 2_000, length: 64, replicas: 1 },
  { rows: 20_000, length: 64, replicas: 3 },
  { rows: 200_000, length: 3, replicas: 2 },
]) {
  test(`evaluation of ${rows} rows of ${length} tokens goes out in bounded parts, every row once, in order`, () => {
    const held = rowsOf(new Array<number>(rows).fill(length));
    const evaluation = evaluationOf(held, 8, 512, replicas);
    const seen = new Set<number>();
    let parts = 0;
    let weight = 0;
    let most = 0;
    for (const packed of evaluation.parts()) {
      parts++;
      most += Math.max(...packed.map(({ batchRows }) => batchRows.length));
      assert.equal(packed.length, replicas);
      const tokens = tokensOf(packed);
      for (const own of tokens) assert.ok(own <= 512, `a micro-batch of ${own} tokens`);
      assert.ok(tokens.reduce((sum, own) => sum + own, 0) <= 1 << 17);
      for (const { rowIds, weights } of packed) {
        for (const id of rowIds) seen.add(id);
        weight += weights.reduce((sum, one) => sum + one, 0);
      }
    }
    assert.equal(seen.size, rows);
    assert.ok(Math.abs(weight - 1) < 1e-3, `weights add up to ${weight}`);
    assert.ok(parts >= (rows * length) / (1 << 17), `${parts} parts`);
    assert.equal(evaluation.steps, rows / 8);
    const { totalTokens, labelTokens } = held.statistics;
    assert.deepEqual(atOnce(evaluationShape(held, 512, replicas)), {
      ...{ rows, requests: parts, microBatches: most, rowTokens: length },
      ...{ meanTokens: totalTokens / (most * replicas), meanLabelTokens: labelTokens / (most * replicas) },
    });
  });
}
