import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { elementCount } from "../../../src/common/dtype.ts";
import { checkHashes, writeHashes } from "../../../src/coordinator/run/checkpoints/checkpoint-store.ts";
import { readCheckpoint } from "../../../src/coordinator/run/checkpoints/checkpoints.ts";
import { initialState, parseState, serializeState } from "../../../src/coordinator/run/checkpoints/trainer-state.ts";
import { openAdapter } from "../../../src/formats/adapter.ts";
import { float32Bytes, writeSafetensors } from "../../../src/formats/safetensors.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { mutateBytes, mutatedJson } from "../mutate.ts";
import type { FuzzTarget } from "../target.ts";
import { GOLDEN_MODELS } from "./model-files.ts";

const GOLDEN = GOLDEN_MODELS[0]!;
const FINGERPRINT = "the same run";
const resolved = async () => {
  const { settings } = await openAdapter(join(GOLDEN, "adapter_init"));
  return resolveLoraTargets(await readModelSpec(join(GOLDEN, "model")), settings);
};
const STATE = serializeState(
  { ...initialState(), globalStep: 4, epoch: 0.5, logHistory: [{ step: 2, loss: 3, epoch: 0.25 }] },
  {
    maxSteps: 8,
    numTrainEpochs: 1,
    trainBatchSize: 2,
    loggingSteps: 2,
    evalSteps: 4,
    saveSteps: 4,
    earlyStopping: { patience: 2, threshold: 0 },
    fingerprint: FINGERPRINT,
  },
  false,
);

/** A checkpoint folder: trainer_state.json, pipelora_hashes.json, the optimizer's state and the adapter. */
export const checkpoint: FuzzTarget = {
  name: "checkpoint",
  async make(random, dir) {
    const folder = join(dir, "checkpoint-4");
    mkdirSync(folder);
    for (const name of ["adapter_config.json", "adapter_model.safetensors"]) {
      copyFileSync(join(GOLDEN, "adapter_init", name), join(folder, name));
    }
    const { matrices } = await resolved();
    const moments = matrices.flatMap(({ name, shape }) =>
      ["exp_avg", "exp_avg_sq"].map((part) => ({
        name: `base_model.model.${name}.${part}`,
        dtype: "float32" as const,
        shape: [elementCount(shape)],
        data: () => float32Bytes(new Float32Array(elementCount(shape))),
      })),
    );
    await writeSafetensors(join(folder, "optimizer.safetensors"), moments);
    const path = (name: string) => join(folder, name);
    writeFileSync(path("trainer_state.json"), STATE);
    const state = () => writeFileSync(path("trainer_state.json"), mutatedJson(random, JSON.parse(STATE)));
    const damage = () => {
      const name = random.pick(["optimizer.safetensors", "adapter_model.safetensors", "adapter_config.json"]);
      writeFileSync(path(name), mutateBytes(random, readFileSync(path(name))));
    };
    // Before the hashes: a stranger made all of it. After: something happened to it.
    const which = random.below(4);
    if (which === 0) state();
    if (which === 1) damage();
    await writeHashes(folder);
    if (which === 2) {
      const hashes = path("pipelora_hashes.json");
      writeFileSync(hashes, mutatedJson(random, JSON.parse(readFileSync(hashes, "utf8"))));
    }
    if (which === 3) random.chance(0.5) ? state() : damage();
  },
  async check(dir) {
    const folder = join(dir, "checkpoint-4");
    const found = await readCheckpoint(folder, await resolved());
    const { globalStep } = parseState(found.state, folder, FINGERPRINT);
    if (globalStep !== 4) throw new Error(`step ${globalStep} in the folder of step 4`);
    await checkHashes(folder);
  },
};
