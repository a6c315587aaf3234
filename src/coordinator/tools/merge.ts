import { realpath } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { type FloatDtype, isFloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { quantizedHold } from "../../common/quantization.ts";
import type { Config } from "../../config/options.ts";
import { loadEngine, type NativeAddon } from "../../engine/index.ts";
import { writeCheckpoint } from "../../formats/checkpoint-writer.ts";
import { loadPackedArrays, packedOf, tensorNames } from "../../formats/quantized-state.ts";
import {
  convertedTensor,
  readTensor,
  type TensorGroup,
  type TensorLocation,
  type TensorToWrite,
} from "../../formats/safetensors.ts";
import type { LinearSpec } from "../../models/spec.ts";
import { type ModelSettings, type ModelSetup, setUpModel } from "../planning/model-setup.ts";
import { AdaptedWeights } from "./adapted-weights.ts";
import { copyModelFiles, writeModelConfig } from "./model-files.ts";
import { quantizableNames, quantizedGroup, type WeightValues } from "./packed-output.ts";

export interface Merged {
  readonly files: readonly string[];
  /** Weights that an adapter was added to. */
  readonly merged: number;
  readonly warnings: readonly string[];
}

/**
 * Writes the base model with W + scale · B · A in place of every adapted W: the sum is made in float32 and rounded once, to the
 * checkpoint's dtype or torch_dtype. A quantised base (stored so, or by --load-in-…) stays quantised: its values are added to and
 * quantised again. Tensors stream one by one.
 */
export async function mergeAdapter(
  config: ModelSettings & Pick<Config, "output_dir" | "max_shard_size">,
  log: Logger,
): Promise<Merged> {
  const setup = await setUpModel(config, log, { weights: true, lora: false });
  refuseTiedTargets(setup);
  const dir = await ensureWritable(config.output_dir!);
  if ((await realpath(dir)) === (await realpath(setup.dir))) {
    throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `--output-dir ${dir} is the base model's own folder`, {
      hint: "Name another folder: the base would be overwritten, and a second merge would add the adapter twice.",
    });
  }
  const merger = new Merger(loadEngine(), setup, config.torch_dtype === "auto" ? null : setup.holdDtype);
  const files = await writeCheckpoint(dir, merger.items(), config.max_shard_size);
  const { quantization, spec } = setup;
  const computeDtype = config.bnb_4bit_compute_dtype ?? spec.quantization?.computeDtype ?? null;
  await writeModelConfig(setup, dir, computeDtype);
  const warnings = quantization === null ? [] : [LOSSY];
  return {
    files: [...files, "config.json", ...(await copyModelFiles(setup.dir, dir))],
    merged: setup.lora!.targets.length,
    warnings: [...setup.warnings, ...warnings],
  };
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

/** A head that shares the embedding's memory can't take an adapter of its own. */
export function refuseTiedTargets({ spec, lora }: ModelSetup): void {
  const head = spec.layers.find((layer) => layer.kind === "head");
  if (head?.tied === true && lora!.targets.some(({ name }) => name === head.name)) {
    throw new PipeloraError("PL_ADAPTER_INVALID", `${head.name} is adapted, but shares its weight with the embedding`, {
      hint: "Keep the adapter beside the base model, or untie the checkpoint first (tie_word_embeddings false).",
    });
  }
}
