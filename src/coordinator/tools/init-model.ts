import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { type Dtype, dtypeBytes, elementCount } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import type { Config } from "../../config/options.ts";
import { loadEngine, type NativeAddon } from "../../engine/index.ts";
import { writeTextAtomically } from "../../formats/atomic-file.ts";
import { writeCheckpoint } from "../../formats/checkpoint-writer.ts";
import type { TensorToWrite } from "../../formats/safetensors.ts";
import { blockVectors } from "../../models/block-vectors.ts";
import { storedTensors } from "../../models/experts.ts";
import { modelSpecFromConfig } from "../../models/index.ts";
import type { ModelSpec, TensorSpec } from "../../models/spec.ts";

/** Elements drawn at a time: one piece of a large tensor is in memory, never the whole. */
const CHUNK_ELEMENTS = 1 << 24;

/**
 * Writes a checkpoint of random weights: matrices N(0, initializer_range) as transformers initialises them, norms 1 (0 where the
 * model adds 1), biases 0. Element i of a tensor depends on (seed, name, i) alone. Returns the files written.
 */
export async function initModel(
  config: Pick<Config, "config" | "output_dir" | "torch_dtype" | "seed" | "max_shard_size">,
): Promise<{ files: string[]; parameters: number }> {
  const modelConfig = await readModelConfig(config.config!);
  const spec = modelSpecFromConfig(modelConfig);
  const dtype = config.torch_dtype === "auto" ? spec.dtype : config.torch_dtype;
  const range = modelConfig["initializer_range"];
  const deviation = typeof range === "number" ? range : 0.02;
  const dir = await ensureWritable(config.output_dir!);
  const addon = loadEngine();
  const held = checkpointTensors(spec);
  const tensors = held.map(
    (tensor): TensorToWrite => ({
      name: tensor.name,
      dtype: tensor.dtype ?? dtype,
      shape: tensor.shape,
      data: () => randomTensor(addon, spec, tensor, { dtype: tensor.dtype ?? dtype, seed: config.seed, deviation }),
    }),
  );
  const files = await writeCheckpoint(dir, tensors, config.max_shard_size);
  await writeTextAtomically(
    join(dir, "config.json"),
    `${JSON.stringify({ ...modelConfig, torch_dtype: dtype }, null, 2)}\n`,
  );
  return {
    files: [...files, "config.json"],
    parameters: held.reduce((sum, { shape }) => sum + elementCount(shape), 0),
  };
}

async function readModelConfig(path: string): Promise<Record<string, unknown>> {
  try {
    const parsed: unknown = JSON.parse(await readFile(path, "utf8"));
    if (typeof parsed === "object" && parsed !== null && !Array.isArray(parsed))
      return parsed as Record<string, unknown>;
  } catch (cause) {
    throw new PipeloraError("PL_MODEL_CONFIG_INVALID", `can't read ${path}: ${(cause as Error).message}`, { cause });
  }
  throw new PipeloraError("PL_MODEL_CONFIG_INVALID", `${path}: expected a JSON object`);
}

/** What a checkpoint holds: every persistent tensor, tied ones once. */
function checkpointTensors(spec: ModelSpec): TensorSpec[] {
  const aliases = new Set(spec.tied.map(([alias]) => alias));
  return storedTensors(spec, null).filter(({ name, persistent }) => persistent && !aliases.has(name));
}

async function* randomTensor(
  addon: NativeAddon,
  spec: ModelSpec,
  tensor: TensorSpec,
  { dtype, seed, deviation }: { readonly dtype: Dtype; readonly seed: number; readonly deviation: number },
): AsyncGenerator<Uint8Array> {
  const total = elementCount(tensor.shape);
  const stream = createHash("sha256").update(tensor.name).digest().readUIntBE(0, 6);
  if (tensor.dtype === "uint8") {
    yield* packedTensor(addon, tensor, { seed, stream, deviation });
    return;
  }
  const constant = freshValue(spec, tensor);
  for (let offset = 0; offset < total; offset += CHUNK_ELEMENTS) {
    const chunk = new Uint8Array(Math.min(CHUNK_ELEMENTS, total - offset) * dtypeBytes(dtype));
    if (constant === null) {
      await addon.fillNormal(chunk, dtype, { seed, stream, offset }, deviation, availableParallelism());
    } else if (constant === 1) {
      fillOnes(chunk, dtype);
    }
    yield chunk;
  }
}

/** Of MXFP4: codes at random, and one scale by which their values deviate nearly so much. */
async function* packedTensor(
  addon: NativeAddon,
  { name, shape }: TensorSpec,
  { seed, stream, deviation }: { readonly seed: number; readonly stream: number; readonly deviation: number },
): AsyncGenerator<Uint8Array> {
  const total = elementCount(shape);
  // The sixteen codes' values deviate by 2.9.
  const scale = Math.max(0, Math.min(254, 127 + Math.round(Math.log2(deviation / 2.9))));
  for (let offset = 0; offset < total; offset += CHUNK_ELEMENTS) {
    const count = Math.min(CHUNK_ELEMENTS, total - offset);
    if (name.endsWith("_scales")) {
      yield new Uint8Array(count).fill(scale);
      continue;
    }
    const drawn = new Float32Array(count);
    addon.fillUniform(drawn, { seed, stream, offset }, 1);
    yield Uint8Array.from(drawn, (value) => Math.min(255, Math.floor((value + 1) * 128)));
  }
}

/** The value of a tensor that is not random: of norms and the like; a bias is 0. */
function freshValue(spec: ModelSpec, { name, shape }: TensorSpec): number | null {
  for (const layer of spec.layers) {
    if (layer.kind === "norm" && layer.weight === name) return 1 - spec.rules.norm.offset;
    if (layer.kind !== "block" || !name.startsWith(`${layer.name}.`)) continue;
    const vector = blockVectors(spec, layer).find((own) => own.name === name);
    if (vector !== undefined) return vector.fresh;
  }
  // Experts' biases are one to each.
  return shape.length > 1 && !/bias$/.test(name) ? null : 0;
}

function fillOnes(bytes: Uint8Array, dtype: Dtype): void {
  if (dtype === "float32") new Float32Array(bytes.buffer).fill(1);
  else new Uint16Array(bytes.buffer).fill(dtype === "bfloat16" ? 0x3f80 : 0x3c00);
}
