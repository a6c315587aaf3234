import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { elementCount } from "../../../src/common/dtype.ts";
import { writeCheckpoint } from "../../../src/formats/checkpoint-writer.ts";
import { fromFloat32 } from "../../../src/formats/half.ts";
import { openSafetensors, readTensor, type SafetensorsFile } from "../../../src/formats/safetensors.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { fixture } from "../../unit/shared-data.ts";

/** What bitsandbytes itself made of a few weights (tests/fixtures/quant). */
export function goldenWeights(): Promise<SafetensorsFile> {
  return openSafetensors(fixture("quant/bnb.safetensors"));
}

/** Models of which some linears have the shape and dtype of one of those weights, and hold it. */
export const WEIGHT_MODELS = {
  "0": { dtype: "float16", hidden: 64, heads: 4, ffn: 64 },
  "1": { dtype: "bfloat16", hidden: 160, heads: 6, ffn: 96 },
} as const;
export type WeightModel = keyof typeof WEIGHT_MODELS;

/** Writes a Llama of one block. Returns the paths of the linears that hold the golden weight. */
export async function writeWeightModel(dir: string, weight: WeightModel): Promise<string[]> {
  const { dtype, hidden, heads, ffn } = WEIGHT_MODELS[weight];
  const config = {
    ...{ model_type: "llama", architectures: ["LlamaForCausalLM"], torch_dtype: dtype, vocab_size: 32 },
    ...{ hidden_size: hidden, intermediate_size: ffn, num_hidden_layers: 1, num_attention_heads: heads, head_dim: 16 },
  };
  const spec = modelSpecFromConfig(config);
  const location = (await goldenWeights()).tensors.get(`${weight}.weight`)!;
  const bytes = await readTensor(location);
  const holds = (shape: readonly number[]) => shape.join() === location.shape.join();
  const parameters = spec.tensors.filter(({ kind }) => kind === "parameter");
  await writeCheckpoint(
    dir,
    parameters.map(({ name, shape }) => ({
      name,
      dtype,
      shape,
      data: () =>
        holds(shape)
          ? bytes
          : fromFloat32(
              Float32Array.from({ length: elementCount(shape) }, (_, i) => Math.sin(i)),
              dtype,
            ),
    })),
  );
  writeFileSync(join(dir, "config.json"), JSON.stringify(config));
  return parameters.filter(({ shape }) => holds(shape)).map(({ name }) => name.replace(/\.weight$/, ""));
}
