import type { Config } from "../config/options.ts";
import { loadEngine } from "../engine/index.ts";
import type { HeldParameter } from "../models/parameters.ts";
import type { ModelSpec } from "../models/spec.ts";
import type { Device } from "../plan/devices.ts";
import type { Plan } from "../plan/plan.ts";
import { heldParameters } from "./held-parameters.ts";
import { setUpModel } from "./model-setup.ts";
import { paperDevices, planFor, trainingWork } from "./planning.ts";
import { type BatchShape, largestMicroBatch, microBatchSize, readTrainingData } from "./training-data.ts";

/** The `plan` command: config.json is enough; with a dataset its real rows are planned for, else rows of max_length. */
export async function planWithoutWorkers(
  config: Config,
): Promise<{ plan: Plan; layerNames: string[]; parameters: readonly HeldParameter[] }> {
  const setup = await setUpModel(config, { weights: false, lora: true });
  const devices = paperDevices(config, loadEngine().capabilities());
  const shape = config.dataset === null ? fullRows(config) : await datasetShape(config, setup.spec, devices);
  const { plan } = await planFor(config, setup, devices, trainingWork(config, shape));
  return { plan, layerNames: setup.spec.layers.map(({ name }) => name), parameters: heldParameters(setup).parameters };
}

async function datasetShape(config: Config, spec: ModelSpec, devices: readonly Device[]): Promise<BatchShape> {
  const data = await readTrainingData(config, spec);
  return largestMicroBatch(data, microBatchSize(config, data, devices));
}

/** Every row as long as may be, every token a label. */
function fullRows(config: Config): BatchShape {
  const rows = config.per_device_train_batch_size * config.gradient_accumulation_steps;
  const perBatch = Math.max(1, Math.floor((config.micro_batch_tokens ?? config.max_length) / config.max_length));
  const tokens = perBatch * config.max_length;
  return { microBatches: Math.ceil(rows / perBatch), tokens, labelTokens: tokens, rowTokens: config.max_length };
}
