import type { FloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { quantizedHold } from "../../common/quantization.ts";
import type { Config } from "../../config/options.ts";
import { loadEngine } from "../../engine/index.ts";
import { writeCheckpoint } from "../../formats/checkpoint-writer.ts";
import { convertedTensor, readTensor, type TensorGroup, type TensorToWrite } from "../../formats/safetensors.ts";
import { type ModelSettings, setUpModel } from "../planning/model-setup.ts";
import { copyModelFiles, writeModelConfig } from "./model-files.ts";
import { quantizableNames, quantizedGroup } from "./packed-output.ts";

/**
 * The `quantize` command: the checkpoint in bitsandbytes' serialised form, as transformers saves and loads it; in 4 bits unless
 * load_in_8bit is set. One weight is in memory at a time.
 */
export async function quantizeModel(
  config: ModelSettings & Pick<Config, "output_dir" | "max_shard_size">,
  log: Logger,
): Promise<{ files: string[]; quantized: number; warnings: readonly string[] }> {
  const setup = await setUpModel({ ...config, load_in_4bit: !config.load_in_8bit }, log, {
    weights: true,
    lora: false,
  });
  const quantization = setup.quantization!;
  if (quantization.stored) {
    throw new PipeloraError("PL_CONFIG_INVALID", `${config.model} is quantised already.`, {
      hint: "Quantise the 16-bit checkpoint.",
    });
  }
  const dir = await ensureWritable(config.output_dir!);
  const addon = loadEngine();
  const hold = quantizedHold(quantization.settings, setup.holdDtype);
  const linears = new Map(quantization.linears.map((linear) => [`${linear.name}.weight`, linear]));
  const checkpoint = setup.checkpoint!;
  const items = quantizableNames(setup).map((name): TensorToWrite | TensorGroup => {
    const location = checkpoint.locate(name);
    const linear = linears.get(name);
    if (linear !== undefined) {
      const dtype = location.dtype as FloatDtype;
      return quantizedGroup(addon, linear, hold, async () => ({ bytes: await readTensor(location), dtype }));
    }
    return {
      name,
      dtype: setup.holdDtype,
      shape: location.shape,
      data: () => convertedTensor(location, setup.holdDtype),
    };
  });
  const files = await writeCheckpoint(dir, items, config.max_shard_size);
  await writeModelConfig(setup, dir, config.bnb_4bit_compute_dtype);
  const copied = await copyModelFiles(setup.dir, dir);
  return { files: [...files, "config.json", ...copied], quantized: linears.size, warnings: setup.warnings };
}
