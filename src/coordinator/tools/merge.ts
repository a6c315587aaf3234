import { realpath } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { bytesOf, float32Of } from "../../common/bytes.ts";
import { dtypeBytes, type FloatDtype, isFloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { type PackedWeight, quantizedHold } from "../../common/quantization.ts";
import type { Config } from "../../config/options.ts";
import { loadEngine, type NativeAddon } from "../../engine/index.ts";
import { adapterMatrices } from "../../formats/adapter.ts";
import { writeCheckpoint } from "../../formats/checkpoint-writer.ts";
import { fromFloat32, toFloat32 } from "../../formats/half.ts";
import { loadPackedArrays, packedOf, tensorNames } from "../../formats/quantized-state.ts";
import {
  convertedTensor,
  readTensor,
  type TensorGroup,
  type TensorLocation,
  type TensorToWrite,
} from "../../formats/safetensors.ts";
import { magnitudeName, pairNames } from "../../models/kinds/lora.ts";
import type { LinearSpec } from "../../models/spec.ts";
import { type ModelSettings, type ModelSetup, setUpModel } from "../planning/model-setup.ts";
import { type MergeTarget, mergeTargets, type Replacement, replacements } from "./merge-targets.ts";
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
    merged: setup.lora!.targets.length + replacements(setup.lora!).size,
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
  readonly #targets: ReadonlyMap<string, MergeTarget>;
  readonly #replaced: ReadonlyMap<string, Replacement>;
  readonly #read: (name: string) => Promise<Float32Array>;

  constructor(addon: NativeAddon, setup: ModelSetup, dtype: FloatDtype | null) {
    this.#addon = addon;
    this.#setup = setup;
    this.#dtype = dtype;
    const { targets, matrices } = setup.lora!;
    this.#targets = mergeTargets(setup.spec, targets, (name) => setup.checkpoint!.names.includes(name));
    this.#replaced = replacements(setup.lora!);
    this.#read = adapterMatrices(setup.adapter!, matrices);
  }

  items(): (TensorToWrite | TensorGroup)[] {
    const { checkpoint, quantization, packed } = this.#setup;
    const linears = new Map((quantization?.linears ?? []).map((linear) => [`${linear.name}.weight`, linear]));
    const changed = [...this.#targets.keys()].filter((name) => linears.has(name));
    const replaced = tensorNames(new Map([...packed].filter(([name]) => changed.includes(`${name}.weight`))));
    const states = tensorNames(packed);
    return quantizableNames(this.#setup).flatMap((name): (TensorToWrite | TensorGroup)[] => {
      const linear = linears.get(name);
      if (linear !== undefined && (changed.includes(name) || packed.size === 0)) return [this.#quantized(linear)];
      if (replaced.has(name)) return [];
      return [states.has(name) ? copied(name, checkpoint!.locate(name)) : this.#plain(name)];
    });
  }

  #plain(name: string): TensorToWrite {
    const location = this.#setup.checkpoint!.locate(name);
    const target = this.#targets.get(name);
    // Experts that are packed in MXFP4, and their scales.
    if (!isFloatDtype(location.dtype)) return copied(name, location);
    const dtype = this.#dtype ?? location.dtype;
    const replacement = this.#replaced.get(name);
    if (replacement !== undefined) {
      return { name, dtype, shape: location.shape, data: () => this.#replace(location, dtype, replacement) };
    }
    const data =
      target === undefined
        ? () => convertedTensor(location, dtype)
        : async () =>
            (await this.#added({ bytes: await whole(convertedTensor(location, dtype)), dtype }, target)).bytes;
    return { name, dtype, shape: location.shape, data };
  }

  /** A weight that is written quantised. */
  #quantized(linear: LinearSpec): TensorGroup {
    const { quantization, packed, checkpoint, holdDtype } = this.#setup;
    const stored = packed.get(linear.name);
    const hold = stored?.hold ?? quantizedHold(quantization!.settings, holdDtype);
    const name = `${linear.name}.weight`;
    return quantizedGroup(this.#addon, linear, hold, async () => {
      const target = this.#targets.get(name);
      if (stored !== undefined) return this.#added(await this.#expanded(await loadPackedArrays(stored)), target!);
      const location = checkpoint!.locate(name);
      const values: WeightValues = { bytes: await readTensor(location), dtype: location.dtype as FloatDtype };
      if (target === undefined) return values;
      const tensors = await this.#addon.quantize(values.bytes, values.dtype, [linear.out, linear.in], hold, THREADS);
      return this.#added(await this.#expanded(packedOf(tensors, hold, [linear.out, linear.in])), target);
    });
  }

  async #expanded(packed: PackedWeight<Uint8Array>): Promise<WeightValues> {
    return { bytes: await this.#addon.dequantize(packed, "float32", THREADS), dtype: "float32" };
  }

  async #replace(location: TensorLocation, dtype: FloatDtype, { matrix, rows }: Replacement): Promise<Uint8Array> {
    const values = fromFloat32(await this.#read(matrix), dtype);
    if (rows === null) return values;
    const table = await whole(convertedTensor(location, dtype));
    const bytes = values.length / rows.length;
    for (const [index, row] of rows.entries())
      table.set(values.subarray(index * bytes, (index + 1) * bytes), row * bytes);
    return table;
  }

  /** DoRA's rows are as long as their magnitudes say: of the sum in float32, which is rounded once. */
  async #scaled(values: WeightValues, merge: MergeTarget): Promise<WeightValues> {
    const { dtype } = values;
    const wide: WeightValues = { bytes: bytesOf(toFloat32(values.bytes, dtype)!), dtype: "float32" };
    const magnitudes = await this.#read(magnitudeName(merge.target.name));
    const sum = float32Of((await this.#added(wide, { ...merge, target: { ...merge.target, dora: false } })).bytes);
    const columns = merge.target.in;
    for (const [row, magnitude] of magnitudes.entries()) {
      const own = sum.subarray(row * columns, (row + 1) * columns);
      const factor = magnitude / Math.sqrt(own.reduce((total, value) => total + value * value, 0));
      for (let i = 0; i < columns; i++) own[i]! *= factor;
    }
    return { bytes: fromFloat32(sum, dtype), dtype };
  }

  async #added(values: WeightValues, merge: MergeTarget): Promise<WeightValues> {
    const { target, parts } = merge;
    if (target.dora) return this.#scaled(values, merge);
    const names = pairNames(target.name, target.role);
    const all = { a: await this.#read(names.a), b: await this.#read(names.b) };
    const width = dtypeBytes(values.dtype);
    for (const { first, out, in: input, pair } of parts) {
      const { a, b } = pair(all);
      const own = values.bytes.subarray(first * width, (first + out * input) * width);
      await this.#addon.addLowRank(own, values.dtype, out, input, a, b, target.scale);
    }
    return values;
  }
}

const THREADS = availableParallelism();

function copied(name: string, location: TensorLocation): TensorToWrite {
  return { name, dtype: location.dtype, shape: location.shape, data: () => readTensor(location) };
}

async function whole(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for await (const piece of pieces) all.push(piece);
  return all.length === 1 ? all[0]! : Buffer.concat(all);
}

/** Two modules that share a weight can't be changed one apart from the other. */
function refuseTiedTargets({ spec, lora }: ModelSetup): void {
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
