import { join } from "node:path";
import { z } from "zod";
import { PipeloraError } from "../common/errors.ts";
import { isFile, readJsonFile } from "../common/files.ts";
import { contradiction, parseConfig } from "./config.ts";
import { FAMILIES } from "./families/index.ts";
import type { ModelSpec } from "./spec.ts";

const header = z.looseObject({
  model_type: z.string().max(64),
  architectures: z.array(z.string().max(128)).max(16).nullable().optional(),
});

/** config.json is small everywhere; a larger file is no configuration. */
const MAX_CONFIG_BYTES = 16 * 1024 * 1024;

/**
 * The model that config.json describes (and generation_config.json, for its end tokens). Both are hostile until checked.
 * Errors: PL_MODEL_CONFIG_INVALID, PL_MODEL_UNSUPPORTED.
 */
export function modelSpecFromConfig(config: unknown, generationConfig?: unknown): ModelSpec {
  const { model_type: family, architectures } = parseConfig(header, config);
  const reader = Object.hasOwn(FAMILIES, family) ? FAMILIES[family] : undefined;
  if (reader === undefined) {
    throw new PipeloraError(
      "PL_MODEL_UNSUPPORTED",
      `model_type "${family}" is not supported; supported: ${Object.keys(FAMILIES).join(", ")}.`,
      { hint: "Use a checkpoint of a supported architecture; docs/reference/models.md lists them." },
    );
  }
  const spec = reader(config, generationConfig);
  const named = architectures?.[0];
  if (named !== undefined && named !== spec.architecture) {
    if (named.startsWith(spec.architecture.replace(/(ForCausalLM|LMHeadModel)$/, ""))) {
      throw new PipeloraError(
        "PL_MODEL_UNSUPPORTED",
        `The checkpoint is a ${named}; supported for model_type "${family}": ${spec.architecture}.`,
        { hint: "Use the causal language model of this family." },
      );
    }
    contradiction(`model_type "${family}" with architecture "${named}", expected "${spec.architecture}"`);
  }
  return spec;
}

/** Reads `<modelDir>/config.json` and, where there is one, generation_config.json. Adds PL_MODEL_NOT_FOUND. */
export async function readModelSpec(modelDir: string): Promise<ModelSpec> {
  const config = await readJson(join(modelDir, "config.json"));
  if (config === undefined) {
    throw new PipeloraError("PL_MODEL_NOT_FOUND", `${modelDir} has no config.json.`, {
      hint: "Give --model the folder of a checkpoint in Hugging Face's layout.",
    });
  }
  return modelSpecFromConfig(config, await readJson(join(modelDir, "generation_config.json")));
}

async function readJson(path: string): Promise<unknown> {
  if (!(await isFile(path))) return undefined;
  try {
    return await readJsonFile(path, MAX_CONFIG_BYTES);
  } catch (error) {
    throw new PipeloraError("PL_MODEL_CONFIG_INVALID", `${path} can't be read as JSON: ${(error as Error).message}.`, {
      hint: "Fetch the file again from where the model came.",
      cause: error,
    });
  }
}
