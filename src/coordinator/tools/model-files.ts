import { copyFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import type { FloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import { readJsonFile } from "../../common/files.ts";
import { writeTextAtomically } from "../../formats/atomic-file.ts";
import { modelConfigText, quantizationConfig } from "../../formats/quantization-config.ts";
import { copyTokenizer } from "../../formats/tokenizer/copy.ts";
import { modelExperts } from "../../models/experts.ts";
import type { ModelSetup } from "../planning/model-setup.ts";

const MAX_CONFIG_BYTES = 16 << 20;

/** Copies what lies beside config.json and the weights: generation settings, the tokenizer, the model's Python code (never run here). */
export async function copyModelFiles(modelDir: string, outputDir: string): Promise<string[]> {
  const names = (await readdir(modelDir)).filter(
    (name) => name === "generation_config.json" || /^[\w.-]+\.py$/.test(name),
  );
  try {
    for (const name of names) await copyFile(join(modelDir, name), join(outputDir, name));
  } catch (cause) {
    throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `can't copy the model's files: ${(cause as Error).message}`, {
      cause,
    });
  }
  return [...names, ...(await copyTokenizer(modelDir, outputDir))];
}

/** Writes config.json as the base's, in the dtype and quantisation that the weights beside it are written in. */
export async function writeModelConfig(
  { dir, spec, holdDtype: dtype, quantization }: Pick<ModelSetup, "dir" | "spec" | "holdDtype" | "quantization">,
  outputDir: string,
  computeDtype: FloatDtype | null,
): Promise<void> {
  const config = (await readJsonFile(join(dir, "config.json"), MAX_CONFIG_BYTES)) as Record<string, unknown>;
  const { quantization_config: before, ...rest } = config;
  // transformers 5 names it dtype.
  const key = typeof rest["dtype"] === "string" ? "dtype" : "torch_dtype";
  const changed: Record<string, unknown> = { ...rest, [key]: dtype };
  // Qwen (v1) has a switch a dtype, which its code would follow instead.
  for (const [name, means] of Object.entries({ bf16: "bfloat16", fp16: "float16", fp32: "float32" })) {
    if (rest[name] === true) changed[name] = means === dtype;
  }
  // Experts that the checkpoint packs stay so.
  if (modelExperts(spec).some(({ packed }) => packed !== null)) changed["quantization_config"] = before;
  if (quantization !== null) {
    const head = spec.layers.find((layer) => layer.kind === "head")!.name;
    // A list of one's own takes the place of transformers' default, which is the head.
    const skip = quantization.skipModules === null ? null : [...new Set([...quantization.skipModules, head])];
    const stored = skip?.length === 1 && quantization.stored ? null : skip;
    changed["quantization_config"] = quantizationConfig(quantization.settings, stored, computeDtype);
  }
  await writeTextAtomically(join(outputDir, "config.json"), modelConfigText(changed));
}
