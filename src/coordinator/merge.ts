import { copyFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import type { Dtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import type { Config } from "../config/options.ts";
import { loadEngine, type NativeAddon } from "../engine/index.ts";
import { adapterPairs } from "../formats/adapter.ts";
import { writeCheckpoint } from "../formats/checkpoint-writer.ts";
import type { PairShape, PairValues } from "../formats/lora-init.ts";
import { readTensor, type TensorLocation, type TensorToWrite } from "../formats/safetensors.ts";
import type { LoraTarget } from "../models/lora-targets.ts";
import { type ModelSetup, setUpModel } from "./model-setup.ts";
import { ensureWritable } from "./output-dir.ts";
import { copyTokenizer } from "./tokenizer-files.ts";

/**
 * Writes the base model with W + scale · B · A in place of every adapted W, in the checkpoint's dtype: the sum is made in
 * float32 and rounded once. Tensors stream one by one.
 */
export async function mergeAdapter(config: Config): Promise<{ files: string[]; merged: number }> {
  const setup = await setUpModel(config, { weights: true, lora: false });
  const targets = setup.lora!.targets;
  refuseTiedTargets(setup);
  const readPair = adapterPairs(setup.adapter!, targets);
  const dir = await ensureWritable(config.output_dir!);
  const addon = loadEngine();
  const byTensor = new Map(targets.map((target) => [`${target.name}.weight`, target]));
  const tensors = setup.checkpoint!.names.map((name): TensorToWrite => {
    const location = setup.checkpoint!.locate(name);
    const target = byTensor.get(name);
    const data =
      target === undefined ? () => readTensor(location) : () => mergedTensor(addon, location, target, readPair);
    return { name, dtype: location.dtype, shape: location.shape, data };
  });
  const files = await writeCheckpoint(dir, tensors, config.max_shard_size);
  const copied = (await readdir(setup.dir)).filter(
    (name) => name === "config.json" || name === "generation_config.json",
  );
  for (const name of copied) await copyFile(join(setup.dir, name), join(dir, name));
  return { files: [...files, ...copied, ...(await copyTokenizer(setup.dir, dir))], merged: byTensor.size };
}

async function mergedTensor(
  addon: NativeAddon,
  { dtype, shape, ...location }: TensorLocation,
  target: LoraTarget,
  readPair: (target: PairShape) => Promise<PairValues>,
): Promise<Uint8Array> {
  const weight = await readTensor({ dtype, shape, ...location });
  const { a, b } = await readPair(target);
  await addon.addLowRank(weight, dtype as Dtype, shape[0]!, shape[1]!, a, b, target.scale);
  return weight;
}

/** A head that shares the embedding's memory can't take an adapter of its own. */
function refuseTiedTargets({ spec, lora }: ModelSetup): void {
  const head = spec.layers.find((layer) => layer.kind === "head");
  if (head?.tied === true && lora!.targets.some(({ name }) => name === head.name)) {
    throw new PipeloraError("PL_ADAPTER_INVALID", `${head.name} is adapted, but shares its weight with the embedding`, {
      hint: "Keep the adapter beside the base model, or untie the checkpoint first (tie_word_embeddings false).",
    });
  }
}
