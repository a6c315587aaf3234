import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, realpath } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { type FloatDtype, isFloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import { isFile } from "../../common/files.ts";
import type { Logger } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { quantizedHold } from "../../common/quantization.ts";
import type { Config } from "../../config/options.ts";
import { loadEngine, type NativeAddon } from "../../engine/index.ts";
import { ADAPTER_WEIGHTS_FILE } from "../../formats/adapter.ts";
import { type Checkpoint, INDEX_FILE, SINGLE_FILE } from "../../formats/checkpoint.ts";
import { writeCheckpoint } from "../../formats/checkpoint-writer.ts";
import { checkpointDigest } from "../../formats/fingerprint.ts";
import { loadPackedArrays, packedOf, tensorNames } from "../../formats/quantized-state.ts";
import {
  convertedTensor,
  openSafetensors,
  readTensor,
  type TensorGroup,
  type TensorLocation,
  type TensorToWrite,
} from "../../formats/safetensors.ts";
import { StagedFolder } from "../../formats/staged-folder.ts";
import type { LinearSpec } from "../../models/spec.ts";
import { type ModelSettings, type ModelSetup, setUpModel } from "../planning/model-setup.ts";
import { locateAdapter } from "../planning/named-models.ts";
import { AdaptedWeights } from "./adapted-weights.ts";
import { replacements } from "./merge-targets.ts";
import { copyModelFiles, writeModelConfig } from "./model-files.ts";
import { quantizableNames, quantizedGroup, type WeightValues } from "./packed-output.ts";

export interface Merged {
  readonly files: readonly string[];
  /** Weights that the adapter was added to; null if only finished files of an earlier call were put in place. */
  readonly merged: number | null;
  readonly warnings: readonly string[];
}

/** Whether the base's own files may be overwritten; asked once, before a weight is read. */
export type Confirm = (dir: string) => Promise<boolean>;

/**
 * Writes the base model with W + scale · B · A in place of every adapted W. The sum is made in float32 and rounded once, to the checkpoint's
 * dtype or torch_dtype. A quantised base (stored so, or by --load-in-…) is dequantised, added to, and quantised again. Tensors stream one by
 * one. Files replace others only when all are complete, so the output can be the base's own folder. After a kill, a merge continues with the
 * shards that are there.
 */
export async function mergeAdapter(config: MergeSettings, log: Logger, confirm: Confirm): Promise<Merged> {
  const dir = await ensureWritable(config.output_dir!);
  const asked = await request(config, log);
  const ended = await StagedFolder.finish(dir, (key) => key.startsWith(`${asked} `));
  if (ended !== null)
    return {
      files: ended,
      merged: null,
      warnings: [`${dir}: ended a merge that was stopped while files took their places`],
    };
  const setup = await setUpModel(config, log, { weights: true, lora: false });
  refuseTiedTargets(setup);
  const adapter = await digest(join(setup.adapter!.dir, ADAPTER_WEIGHTS_FILE));
  const before = await alreadyMerged(setup.checkpoint!, adapter);
  const inPlace = (await realpath(dir)) === (await realpath(setup.dir));
  if (inPlace && (setup.hub !== null || !(await confirm(dir)))) {
    throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `--output-dir ${dir} is the base model's own folder`, {
      hint: setup.hub === null ? "Name another folder, or say --yes to overwrite the base." : "Name another folder.",
    });
  }
  const staged = await StagedFolder.open(dir, `${asked} ${await checkpointDigest(setup.checkpoint!)}`);
  const merger = new Merger(loadEngine(), setup, config.torch_dtype === "auto" ? null : setup.holdDtype);
  await writeCheckpoint(staged.stage, merger.items(), config.max_shard_size, {
    whole: await staged.written(),
    metadata: { format: "pt", [MERGED]: [...before, adapter].join(" ") },
  });
  const { quantization, spec } = setup;
  await writeModelConfig(setup, staged.stage, config.bnb_4bit_compute_dtype ?? spec.quantization?.computeDtype ?? null);
  await copyModelFiles(setup.dir, staged.stage);
  const files = await staged.place(await checkpointFiles(dir), [SINGLE_FILE, INDEX_FILE]);
  return {
    files,
    merged: setup.lora!.targets.length + replacements(setup.lora!).size,
    warnings: [...setup.warnings, ...(quantization === null ? [] : [LOSSY])],
  };
}

type MergeSettings = ModelSettings & Pick<Config, "output_dir" | "max_shard_size">;

/** Key in the header of merged safetensors files: SHA-256 of the adapters that are in them. */
const MERGED = "pipelora_merged";

/** The request, as far as it stays the same while files are put in place. */
async function request(config: MergeSettings, log: Logger): Promise<string> {
  const adapter = await locateAdapter(config.adapter!, config.hub, log);
  const weights = join(adapter, ADAPTER_WEIGHTS_FILE);
  const parts = [
    config.model,
    (await isFile(weights)) ? await digest(weights) : null,
    config.torch_dtype,
    config.max_shard_size,
  ];
  const quantised = [
    config.load_in_4bit,
    config.load_in_8bit,
    config.bnb_4bit_quant_type,
    config.bnb_4bit_use_double_quant,
  ];
  return createHash("sha256")
    .update(JSON.stringify([...parts, ...quantised]))
    .digest("hex")
    .slice(0, 32);
}

async function digest(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

/** The adapters that have been merged into the base already. Error: PL_ADAPTER_INVALID if this one is among them. */
async function alreadyMerged(checkpoint: Checkpoint, adapter: string): Promise<string[]> {
  const { metadata } = await openSafetensors(checkpoint.locate(checkpoint.names[0]!).path);
  const merged = (metadata[MERGED] ?? "").split(" ").filter((name) => name !== "");
  if (!merged.includes(adapter)) return merged;
  throw new PipeloraError(
    "PL_ADAPTER_INVALID",
    `this adapter was already merged into ${checkpoint.dir}; merging again would add it twice`,
    {
      hint: "Merge onto the base that the adapter was trained on.",
    },
  );
}

/** Weights and index of a checkpoint that lies there. */
async function checkpointFiles(dir: string): Promise<string[]> {
  return (await readdir(dir)).filter(
    (name) => name === SINGLE_FILE || name === INDEX_FILE || /^model-\d+-of-\d+\.safetensors$/.test(name),
  );
}

const LOSSY =
  "the base is quantised: each sum is rounded to its few bits again, which loses a part of the adapter; merging onto the 16-bit checkpoint keeps it";

class Merger {
  readonly #addon: NativeAddon;
  readonly #setup: ModelSetup;
  /** null: each tensor's own. */
  readonly #dtype: FloatDtype | null;
  readonly #weights: AdaptedWeights;

  constructor(addon: NativeAddon, setup: ModelSetup, dtype: FloatDtype | null) {
    this.#addon = addon;
    this.#setup = setup;
    this.#dtype = dtype;
    const held = new Set(setup.checkpoint!.names);
    this.#weights = new AdaptedWeights(addon, setup, (name) => held.has(name));
  }

  items(): (TensorToWrite | TensorGroup)[] {
    const { checkpoint, quantization, packed } = this.#setup;
    const linears = new Map((quantization?.linears ?? []).map((linear) => [`${linear.name}.weight`, linear]));
    const changed = this.#weights.names;
    const replaced = tensorNames(new Map([...packed].filter(([name]) => changed.has(`${name}.weight`))));
    const states = tensorNames(packed);
    return quantizableNames(this.#setup).flatMap((name): (TensorToWrite | TensorGroup)[] => {
      const linear = linears.get(name);
      if (linear !== undefined && (changed.has(name) || packed.size === 0)) return [this.#quantized(linear)];
      if (replaced.has(name)) return [];
      return [states.has(name) ? copied(name, checkpoint!.locate(name)) : this.#plain(name)];
    });
  }

  #plain(name: string): TensorToWrite {
    const location = this.#setup.checkpoint!.locate(name);
    // Experts that are packed in MXFP4, and their scales.
    if (!isFloatDtype(location.dtype)) return copied(name, location);
    const dtype = this.#dtype ?? location.dtype;
    const data = this.#weights.names.has(name)
      ? async () => (await this.#weights.values(name, location, dtype)).bytes
      : () => convertedTensor(location, dtype);
    return { name, dtype, shape: location.shape, data };
  }

  /** A weight that is written quantised. */
  #quantized(linear: LinearSpec): TensorGroup {
    const { quantization, packed, checkpoint, holdDtype } = this.#setup;
    const stored = packed.get(linear.name);
    const hold = stored?.hold ?? quantizedHold(quantization!.settings, holdDtype);
    const name = `${linear.name}.weight`;
    return quantizedGroup(this.#addon, linear, hold, async () => {
      if (stored !== undefined) {
        return this.#weights.added(name, await this.#weights.expanded(await loadPackedArrays(stored)));
      }
      const location = checkpoint!.locate(name);
      const values: WeightValues = { bytes: await readTensor(location), dtype: location.dtype as FloatDtype };
      if (!this.#weights.names.has(name)) return values;
      const tensors = await this.#addon.quantize(values.bytes, values.dtype, [linear.out, linear.in], hold, THREADS);
      return this.#weights.added(name, await this.#weights.expanded(packedOf(tensors, hold, [linear.out, linear.in])));
    });
  }
}

const THREADS = availableParallelism();

function copied(name: string, location: TensorLocation): TensorToWrite {
  return { name, dtype: location.dtype, shape: location.shape, data: () => readTensor(location) };
}

/** Two modules that share a weight can't get different changes. */
export function refuseTiedTargets({ spec, lora }: Pick<ModelSetup, "spec" | "lora">): void {
  const head = spec.layers.find((layer) => layer.kind === "head");
  if (head?.tied !== true) return;
  const { targets, saved } = lora!;
  const changed = [...targets.map(({ name }) => name), ...saved.map(({ module }) => module)];
  const own = changed.find((name) => name === head.name || name === spec.layers[0]!.name);
  if (own === undefined) return;
  throw new PipeloraError("PL_ADAPTER_INVALID", `${own} is trained, but the embedding and the head share one weight`, {
    hint: "Keep the adapter beside the base model, or untie the checkpoint first (tie_word_embeddings false).",
  });
}
