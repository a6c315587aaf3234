import { availableParallelism } from "node:os";
import { dtypeBytes, type FloatDtype } from "../../common/dtype.ts";
import type { PackedWeight } from "../../common/quantization.ts";
import type { NativeAddon } from "../../engine/index.ts";
import { adapterPairs } from "../../formats/adapter.ts";
import type { PairShape, PairValues } from "../../formats/lora-init.ts";
import { convertedTensor, type TensorLocation } from "../../formats/safetensors.ts";
import { storedAliases } from "../../models/experts.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import { type MergeTarget, mergeTargets } from "./merge-targets.ts";
import type { WeightValues } from "./packed-output.ts";

const THREADS = availableParallelism();

/** The base's weights with W + scale · B · A in place of every adapted W, one at a time. */
export class AdaptedWeights {
  readonly #addon: NativeAddon;
  readonly #targets: ReadonlyMap<string, MergeTarget>;
  readonly #readPair: ((target: PairShape) => Promise<PairValues>) | null;

  /** `holds`: whether a tensor of this name is asked for (experts at once or apart). Error: PL_ADAPTER_INVALID. */
  constructor(
    addon: NativeAddon,
    { spec, lora, adapter }: Pick<ModelSetup, "spec" | "lora" | "adapter">,
    holds: (name: string) => boolean,
  ) {
    this.#addon = addon;
    const targets = adapter === null ? [] : lora!.targets;
    const stored = mergeTargets(spec, targets, holds);
    const own = [...storedAliases(spec)].flatMap(([name, alias]) => {
      const found = stored.get(alias);
      return found === undefined ? [] : [[name, found] as const];
    });
    this.#targets = new Map([...stored, ...own]);
    this.#readPair = adapter === null ? null : adapterPairs(adapter, targets);
  }

  /** Names of adapted tensors, those of the model and of the checkpoint. */
  get names(): ReadonlySet<string> {
    return new Set(this.#targets.keys());
  }

  /** A stored tensor in `dtype`: the sum is made in float32 and rounded once. */
  async values(name: string, location: TensorLocation, dtype: FloatDtype): Promise<WeightValues> {
    return this.added(name, { bytes: await collected(convertedTensor(location, dtype)), dtype });
  }

  /** Values of that tensor with what the adapter adds. Changes them in place. */
  async added(name: string, values: WeightValues): Promise<WeightValues> {
    const found = this.#targets.get(name);
    if (found === undefined) return values;
    const { target, parts } = found;
    const all = await this.#readPair!(target);
    const width = dtypeBytes(values.dtype);
    for (const { first, out, in: input, pair } of parts) {
      const { a, b } = pair(all);
      const own = values.bytes.subarray(first * width, (first + out * input) * width);
      await this.#addon.addLowRank(own, values.dtype, out, input, a, b, target.scale);
    }
    return values;
  }

  /** The float32 values of a quantised weight. */
  async expanded(packed: PackedWeight<Uint8Array>): Promise<WeightValues> {
    return { bytes: await this.#addon.dequantize(packed, "float32", THREADS), dtype: "float32" };
  }
}

async function collected(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for await (const piece of pieces) all.push(piece);
  return all.length === 1 ? all[0]! : Buffer.concat(all);
}
