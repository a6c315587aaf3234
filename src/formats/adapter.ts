import { join } from "node:path";
import { isFloatDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { isFile, readJsonFile } from "../common/files.ts";
import type { LoraSettings } from "../common/lora-settings.ts";
import { adapterConfigText, type ParsedAdapterConfig, parseAdapterConfig } from "./adapter-config.ts";
import { writeTextAtomically } from "./atomic-file.ts";
import {
  float32Bytes,
  openSafetensors,
  readFloat32,
  type SafetensorsFile,
  type TensorLocation,
  type TensorToWrite,
  writeSafetensors,
} from "./safetensors.ts";

export const ADAPTER_CONFIG_FILE = "adapter_config.json";
const MODEL_CARD_FILE = "README.md";
export const ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors";
const MAX_CONFIG_BYTES = 64 * 1024 * 1024;

/** An adapter folder whose configuration and header have been read and checked. Its weights have not been read. */
export interface Adapter extends ParsedAdapterConfig {
  readonly dir: string;
  readonly weights: SafetensorsFile;
}

/** Opens a peft adapter folder. Error: PL_ADAPTER_INVALID. */
export async function openAdapter(dir: string): Promise<Adapter> {
  const path = join(dir, ADAPTER_CONFIG_FILE);
  if (!(await isFile(path))) throw invalid(`${dir} has no ${ADAPTER_CONFIG_FILE}`);
  let json: unknown;
  try {
    json = await readJsonFile(path, MAX_CONFIG_BYTES);
  } catch (error) {
    throw invalid(`${path} is not JSON: ${(error as Error).message}`, error);
  }
  const config = parseAdapterConfig(path, json);
  try {
    return { ...config, dir, weights: await openSafetensors(join(dir, ADAPTER_WEIGHTS_FILE)) };
  } catch (error) {
    throw invalid((error as Error).message.replace(/\.$/, ""), error);
  }
}

/** What a file calls a matrix. */
const BASE = "base_model.model.";
export const adapterKey = (name: string) => `${BASE}${name}`;

/** A matrix of the file, by its name without "base_model.model.". */
interface Shaped {
  readonly name: string;
  readonly shape: readonly number[];
}

/** A base's weight, which peft saves with pairs on embeddings and heads. */
const BASE_COPY = /^base_model\.model\..+\.base_layer\.weight$/;

/** The bases' weights that an adapter's file holds, by the adapted module's path. */
export function baseCopies({ weights }: Pick<Adapter, "weights">): Map<string, TensorLocation> {
  const found = [...weights.tensors].filter(([key]) => BASE_COPY.test(key));
  return new Map(found.map(([key, location]) => [key.slice(BASE.length, -".base_layer.weight".length), location]));
}

/**
 * Checks that the adapter holds exactly these matrices, in their shapes, and returns a reader of one of them by name (float32).
 * Error: PL_ADAPTER_INVALID.
 */
export function adapterMatrices(
  adapter: Adapter,
  matrices: readonly Shaped[],
): (name: string) => Promise<Float32Array> {
  const { tensors, path } = adapter.weights;
  const expected = new Map(matrices.map(({ name, shape }) => [adapterKey(name), shape]));
  for (const [key, shape] of expected) {
    const found = tensors.get(key);
    if (found === undefined) throw invalid(`${path} lacks ${key}, which its configuration and this model call for`);
    if (found.shape.length !== shape.length || shape.some((extent, axis) => found.shape[axis] !== extent)) {
      throw invalid(
        `${path}: ${key} has shape [${found.shape.join(", ")}], expected [${shape.join(", ")}] for this model`,
      );
    }
    if (!isFloatDtype(found.dtype)) {
      throw invalid(`${path}: ${key} has dtype ${found.dtype}, expected float32, float16 or bfloat16`);
    }
  }
  const foreign = [...tensors.keys()].find((key) => !expected.has(key) && !BASE_COPY.test(key));
  if (foreign !== undefined) throw invalid(`${path} holds ${foreign}, which this adapter of this model does not train`);
  return (name) => readFloat32(tensors.get(adapterKey(name))!);
}

export interface AdapterToWrite {
  readonly settings: LoraSettings;
  /** Target modules as resolveLoraTargets returns them: "all-linear" is expanded. */
  readonly targetModules: string | readonly string[];
  readonly baseModel: string | null;
  readonly matrices: readonly Shaped[];
  /** Called once for each matrix, in the file's order, so that one matrix at a time is in memory. */
  readonly values: (name: string) => Float32Array | Promise<Float32Array>;
  /** Weights of the base that are saved too, named like matrices. */
  readonly bases?: readonly TensorToWrite[];
}

/** Writes a folder that peft loads: weights, configuration, a model card; each file whole or not at all. */
export async function writeAdapter(dir: string, adapter: AdapterToWrite): Promise<string[]> {
  const tensors = adapter.matrices.map(
    ({ name, shape }): TensorToWrite => ({
      name: adapterKey(name),
      dtype: "float32",
      shape,
      data: async () => float32Bytes(await adapter.values(name)),
    }),
  );
  const bases = (adapter.bases ?? []).map((base) => ({ ...base, name: adapterKey(base.name) }));
  await writeSafetensors(join(dir, ADAPTER_WEIGHTS_FILE), [...tensors, ...bases]);
  await writeTextAtomically(
    join(dir, ADAPTER_CONFIG_FILE),
    adapterConfigText(adapter.settings, adapter.targetModules, adapter.baseModel),
  );
  await writeTextAtomically(join(dir, MODEL_CARD_FILE), modelCard(adapter));
  return [ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE, MODEL_CARD_FILE];
}

function modelCard({ settings, targetModules, baseModel }: AdapterToWrite): string {
  const base = baseModel === null ? [] : [`base_model: ${JSON.stringify(baseModel)}`];
  const modules = [targetModules].flat().map((name) => `\`${name}\``);
  return [
    "---",
    ...base,
    "library_name: peft",
    "pipeline_tag: text-generation",
    "tags:",
    "- lora",
    "---",
    "",
    "# LoRA adapter",
    "",
    `Rank ${settings.r}, alpha ${settings.alpha}, dropout ${settings.dropout} on ${modules.join(", ")}.`,
    "Load it with `PeftModel.from_pretrained(base_model, folder)`.",
    "",
  ].join("\n");
}

function invalid(message: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_ADAPTER_INVALID", `${message}.`, {
    hint: "Give the folder of a LoRA adapter made for this model, as peft saves it.",
    ...(cause === undefined ? {} : { cause }),
  });
}
