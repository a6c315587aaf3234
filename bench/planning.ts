import { monitorEventLoopDelay } from "node:perf_hooks";
import { defaultConfig } from "../src/config/load.ts";
import { trainingWorkload } from "../src/coordinator/planning/workload.ts";
import { Dataset } from "../src/data/dataset.ts";
import { TrainingOrder } from "../src/data/order.ts";
import { RowStore } from "../src/data/row-store.ts";
import type { Device } from "../src/plan/index.ts";

const DEFAULT = [1_000_000, 1, 1_000_000, 12];

/**
 * How long it takes to look at every step of a run, and how long that holds the event loop. `args`: ROWS EPOCHS, again and again. Rows of 5 to
 * 20 tokens, in steps of one row and of eight.
 */
export async function benchPlanning(print: (row: object) => void, args: readonly string[]): Promise<void> {
  const sizes = args.length > 0 ? args.map(Number) : DEFAULT;
  for (let at = 0; at < sizes.length; at += 2) {
    for (const batchSize of [1, 8]) print(await measure(sizes[at]!, sizes[at + 1]!, batchSize));
  }
}

async function measure(rows: number, epochs: number, batchSize: number): Promise<object> {
  const store = new RowStore();
  for (let row = 0; row < rows; row++) {
    const tokens = new Int32Array(5 + (row % 16)).fill(7);
    store.add({ tokens, labels: tokens });
  }
  const train = new Dataset(store);
  const order = new TrainingOrder({
    rows,
    strategy: "random",
    seed: 42,
    batchSize,
    accumulation: 1,
    replicas: 1,
    dropLast: false,
    epochs,
    maxSteps: -1,
  });
  const config = { ...defaultConfig(), per_device_train_batch_size: batchSize };
  const workload = trainingWorkload(config, { train, evaluation: null, order });
  const cut = workload.fixed([{ kind: "cpu" } as Device]);
  const delay = monitorEventLoopDelay({ resolution: 5 });
  await new Promise((resolve) => setTimeout(resolve, 20));
  delay.enable();
  await new Promise((resolve) => setTimeout(resolve, 50));
  const began = performance.now();
  await cut.work(true);
  await cut.work(false);
  const seconds = (performance.now() - began) / 1000;
  await new Promise((resolve) => setTimeout(resolve, 20));
  delay.disable();
  const held_ms = Math.round(delay.max / 1e6);
  return { rows, epochs, steps: order.totalSteps, seconds: Number(seconds.toFixed(2)), held_ms };
}
