import type { Config } from "../config/options.ts";
import { loadEngine } from "../engine/index.ts";
import type { HeldParameter } from "../models/parameters.ts";
import type { Plan } from "../plan/plan.ts";
import { NO_OVERRIDES } from "../plan/request.ts";
import { heldParameters } from "./held-parameters.ts";
import { setUpModel } from "./model-setup.ts";
import { paperDevices, planFor } from "./planning.ts";
import { readTrainingData } from "./training-data.ts";
import { fullRowsWorkload, trainingWorkload } from "./workload.ts";

/** The `plan` command: config.json is enough; with a dataset its real rows are planned for, else rows of max_length. */
export async function planWithoutWorkers(
  config: Config,
): Promise<{ plan: Plan; layerNames: string[]; parameters: readonly HeldParameter[] }> {
  const setup = await setUpModel(config, { weights: false, lora: true });
  const devices = paperDevices(config, loadEngine().capabilities());
  const workload =
    config.dataset === null
      ? fullRowsWorkload(config)
      : trainingWorkload(config, await readTrainingData(config, setup.spec));
  const { plan } = await planFor(config, setup, devices, workload, NO_OVERRIDES);
  return { plan, layerNames: setup.spec.layers.map(({ name }) => name), parameters: heldParameters(setup).parameters };
}
