import { join } from "node:path";
import { z } from "zod";
import { FLOAT_DTYPES, isFloatDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { isFile, readJsonFile } from "../common/files.ts";
import { openSafetensors, type SafetensorsFile, type TensorLocation } from "./safetensors.ts";
import { withScaledWeights } from "./scaled-weights.ts";

/** A checkpoint's tensors by name; headers are read and checked, no tensor is. */
export interface Checkpoint {
  readonly dir: string;
  readonly names: readonly string[];
  has(name: string): boolean;
  /** Throws PL_TENSOR_MISMATCH for a name that the checkpoint lacks. */
  locate(name: string): TensorLocation;
}

/** The part of a model's description that a checkpoint is compared with (ModelSpec has it). */
export interface ExpectedTensors {
  readonly tensors: readonly {
    readonly name: string;
    readonly shape: readonly number[];
    readonly kind: "parameter" | "buffer";
    readonly persistent: boolean;
  }[];
  readonly tied: readonly (readonly [string, string])[];
  /** Prefixes of tensors that belong to other parts of the model. */
  readonly skipped: readonly string[];
}

export const SINGLE_FILE = "model.safetensors";
export const INDEX_FILE = "model.safetensors.index.json";
const MAX_INDEX_BYTES = 256 * 1024 * 1024;

const indexSchema = z.looseObject({
  weight_map: z.record(z.string(), z.string()),
});

/** Computed buffers that older versions of the model code saved. */
const COMPUTED_BUFFERS = /\.(rotary_emb\.(inv_freq|original_inv_freq)|attn\.(bias|masked_bias|logn_tensor))$/;
const QUANTIZER_STATE = /\.(SCB|weight\.(absmax|quant_map|quant_state\.bitsandbytes__\w+))$/;

/**
 * Opens `<dir>/model.safetensors`, or the shards that model.safetensors.index.json names.
 * `model`: whose names it is read by. `tensors`: only the shards that hold these are opened, and need be there.
 * Errors: PL_MODEL_NOT_FOUND, PL_CHECKPOINT_INVALID.
 */
export async function openCheckpoint(
  dir: string,
  model: ModelNames = NO_MODEL,
  tensors: readonly string[] | null = null,
): Promise<Checkpoint> {
  if (await isFile(join(dir, SINGLE_FILE))) {
    const file = await openSafetensors(join(dir, SINGLE_FILE));
    return checkpointOf(dir, await withScaledWeights(dir, renamed(file.tensors, renameOf(file.tensors, model))));
  }
  if (await isFile(join(dir, INDEX_FILE))) return openSharded(dir, model, tensors);
  const pickled =
    (await isFile(join(dir, "pytorch_model.bin"))) || (await isFile(join(dir, "pytorch_model.bin.index.json")));
  throw new PipeloraError("PL_MODEL_NOT_FOUND", `${dir} has neither ${SINGLE_FILE} nor ${INDEX_FILE}.`, {
    hint: pickled
      ? "Its pytorch_model.bin is a pickle, which is never read: convert the checkpoint to safetensors."
      : "Give --model the folder of a checkpoint in Hugging Face's layout.",
  });
}

function renamed(
  tensors: ReadonlyMap<string, TensorLocation>,
  rename: (name: string) => string,
): ReadonlyMap<string, TensorLocation> {
  return new Map([...tensors].map(([name, place]) => [rename(name), place]));
}

/** A model's names (ModelSpec has them). */
export interface ModelNames {
  /** Pairs of names that share memory, the alias first. */
  readonly tied: readonly (readonly [string, string])[];
  /** The embedding's first. */
  readonly tensors: readonly { readonly name: string }[];
}

const NO_MODEL: ModelNames = { tied: [], tensors: [] };

/**
 * Maps this checkpoint's names to the model's. transformers adds the base model's prefix to names that were saved without it (AutoModel
 * instead of AutoModelForCausalLM): "layers.0…" is "model.layers.0…", Qwen (v1)'s "h.0…" is "transformer.h.0…". Of two tied names it takes
 * the one that the checkpoint has: a head alone is also the embedding. A checkpoint that has the model's own embedding lacks no prefix.
 */
function renameOf(names: NamedTensors, { tied, tensors }: ModelNames): (name: string) => string {
  const own = tensors[0] !== undefined && names.has(tensors[0].name);
  const inModel = own ? (name: string) => name : modelNames(names, tensors[0]?.name ?? "");
  const all = new Set([...names.keys()].map(inModel));
  const alone = new Map(tied.filter(([alias, name]) => all.has(alias) && !all.has(name)));
  return (name) => alone.get(inModel(name)) ?? inModel(name);
}

type NamedTensors = Pick<ReadonlyMap<string, unknown>, "has" | "keys">;

function modelNames(names: NamedTensors, embedding: string): (name: string) => string {
  if (embedding.startsWith("model.language_model.") && names.has("model.embed_tokens.weight")) return qwenVlName;
  if (names.has("language_model.model.embed_tokens.weight")) return multimodalName;
  const any = (...some: readonly string[]) => some.some((name) => names.has(name));
  const prefix = any("embed_tokens.weight", "norm.weight")
    ? "model."
    : any("wte.weight", "ln_f.weight")
      ? "transformer."
      : "";
  return (name) => (name.startsWith("lm_head.") ? name : prefix + name);
}

/** Qwen2-VL's and Qwen2.5-VL's checkpoints of the hub: "model.…" is now "model.language_model.…", "visual.…" "model.visual.…". */
function qwenVlName(name: string): string {
  if (name.startsWith("model.")) return name.replace("model.", "model.language_model.");
  return name.startsWith("visual.") ? `model.${name}` : name;
}

/** Multimodal checkpoints from before transformers 4.52: "language_model.model.…" is now "model.language_model.…". */
function multimodalName(name: string): string {
  if (name.startsWith("language_model.model.")) return name.replace("language_model.model.", "model.language_model.");
  if (name.startsWith("language_model.lm_head.")) return name.replace("language_model.", "");
  return `model.${name}`;
}

/**
 * The shards that a folder's index names, limited to those that hold `tensors` (or the parts of such a weight that is stored quantised);
 * null: all. Error: PL_CHECKPOINT_INVALID.
 */
export async function shardsHolding(
  dir: string,
  tensors: readonly string[] | null,
  model: ModelNames = NO_MODEL,
): Promise<string[]> {
  return [...shardsOf(await readIndex(join(dir, INDEX_FILE)), model, tensors)];
}

function shardsOf(
  entries: readonly (readonly [string, string])[],
  model: ModelNames,
  tensors: readonly string[] | null,
): Set<string> {
  if (tensors === null) return new Set(entries.map(([, shard]) => shard));
  // A weight's quantised parts stand beside it, under its module's name.
  const modules = new Set(tensors.map((name) => name.replace(/\.(weight|bias)$/, "")));
  const rename = renameOf(new Map(entries), model);
  const wanted = entries.filter(([name]) => {
    const parts = rename(name).split(".");
    return parts.some((_, last) => modules.has(parts.slice(0, last + 1).join(".")));
  });
  return new Set(wanted.map(([, shard]) => shard));
}

async function openSharded(dir: string, model: ModelNames, wanted: readonly string[] | null): Promise<Checkpoint> {
  const entries = await readIndex(join(dir, INDEX_FILE));
  const held = shardsOf(entries, model, wanted);
  const rename = renameOf(new Map(entries), model);
  const weightMap = entries.filter(([, shard]) => held.has(shard));
  const shards = new Map<string, SafetensorsFile>();
  const tensors = new Map<string, TensorLocation>();
  for (const [name, shard] of weightMap) {
    let file = shards.get(shard);
    if (file === undefined) {
      file = await openSafetensors(join(dir, shard));
      shards.set(shard, file);
    }
    const location = file.tensors.get(name);
    if (location === undefined) throw invalid(`${INDEX_FILE} says that ${shard} holds ${name}, but it does not`);
    tensors.set(name, location);
  }
  return checkpointOf(dir, await withScaledWeights(dir, renamed(tensors, rename)));
}

async function readIndex(path: string): Promise<[string, string][]> {
  let parsed: unknown;
  try {
    parsed = await readJsonFile(path, MAX_INDEX_BYTES);
  } catch (error) {
    throw invalid(`${path} is no index: ${(error as Error).message}`, error);
  }
  const index = indexSchema.safeParse(parsed);
  if (!index.success) throw invalid(`${path} has no "weight_map" of tensor names and files`);
  const entries = Object.entries(index.data.weight_map);
  if (entries.length === 0) throw invalid(`${path} names no tensor`);
  for (const [name, shard] of entries) {
    // A bare file name in this folder: no separators, no parent, no device names.
    if (!/^[\w.-]+\.safetensors$/.test(shard)) {
      throw invalid(`${path} puts ${name} into ${JSON.stringify(shard)}, which is no safetensors file of its folder`);
    }
  }
  return entries;
}

function checkpointOf(dir: string, tensors: ReadonlyMap<string, TensorLocation>): Checkpoint {
  return {
    dir,
    names: [...tensors.keys()],
    has: (name) => tensors.has(name),
    locate: (name) => {
      const location = tensors.get(name);
      if (location === undefined) throw mismatch([`${name} is missing`], dir);
      return location;
    },
  };
}

/**
 * Compares every parameter's presence, shape and dtype with the model's description. Refuses tensors that the model does not know, except
 * computed buffers and a tied tensor's second name. `packed`: tensors of quantised weights, which have been checked. Returns how many
 * tensors of other parts are left out. Errors: PL_TENSOR_MISMATCH, PL_QUANTIZATION_INVALID for quantised tensors that the configuration
 * does not announce.
 */
export function verifyCheckpoint(
  expected: ExpectedTensors,
  checkpoint: Checkpoint,
  packed: ReadonlySet<string> = new Set(),
): number {
  const problems: string[] = [];
  let skipped = 0;
  const known = new Set([...packed, ...expected.tied.map(([alias]) => alias)]);
  const state = packed.size > 0 ? undefined : checkpoint.names.find((name) => QUANTIZER_STATE.test(name));
  if (state !== undefined) {
    throw new PipeloraError(
      "PL_QUANTIZATION_INVALID",
      `${checkpoint.dir} holds ${state}, a quantised weight's state, but its config.json has no quantization_config.`,
      { hint: "Take config.json from the same folder as the weights." },
    );
  }
  for (const { name, shape, persistent } of expected.tensors) {
    if (packed.has(name)) continue;
    known.add(name);
    if (!checkpoint.has(name)) {
      if (persistent) problems.push(`${name} is missing`);
      continue;
    }
    if (!persistent) continue;
    const found = checkpoint.locate(name);
    if (found.shape.length !== shape.length || found.shape.some((extent, axis) => extent !== shape[axis])) {
      problems.push(`${name} has shape [${found.shape.join(", ")}], expected [${shape.join(", ")}]`);
    } else if (!isFloatDtype(found.dtype)) {
      problems.push(`${name} has dtype ${found.dtype}, expected ${FLOAT_DTYPES.join(", ")}`);
    }
  }
  for (const name of checkpoint.names) {
    if (expected.skipped.some((beginning) => name.startsWith(beginning))) skipped += 1;
    else if (!known.has(name) && !COMPUTED_BUFFERS.test(name)) problems.push(`${name} is not part of this model`);
  }
  if (problems.length > 0) throw mismatch(problems, checkpoint.dir);
  return skipped;
}

function mismatch(problems: readonly string[], dir: string): PipeloraError {
  const shown = problems.slice(0, 5).join("; ");
  const rest = problems.length > 5 ? `; and ${problems.length - 5} more` : "";
  return new PipeloraError("PL_TENSOR_MISMATCH", `${dir}: ${shown}${rest}.`, {
    hint: "config.json and the weights must come from the same checkpoint.",
  });
}

function invalid(message: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_CHECKPOINT_INVALID", `${message}.`, {
    hint: "Fetch or write the checkpoint again.",
    ...(cause === undefined ? {} : { cause }),
  });
}
