import { availableParallelism } from "node:os";
import { bytesOf, float32Of } from "../../common/bytes.ts";
import { dtypeBytes, type FloatDtype } from "../../common/dtype.ts";
import type { PackedWeight } from "../../common/quantization.ts";
import type { NativeAddon } from "../../engine/index.ts";
import { adapterMatrices } from "../../formats/adapter.ts";
import { fromFloat32, toFloat32 } from "../../formats/half.ts";
import { convertedTensor, type TensorLocation } from "../../formats/safetensors.ts";
import { storedAliases } from "../../models/experts.ts";
import { magnitudeName, pairNames } from "../../models/kinds/lora.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import { type MergeTarget, mergeTargets, type Replacement, replacements } from "./merge-targets.ts";
import type { WeightValues } from "./packed-output.ts";

const THREADS = availableParallelism();

/**
 * The base's weights one at a time: W + scale · B · A in place of every adapted W (with DoRA, rows scaled to their magnitudes), and fully
 * trained weights in place of the base's.
 */
export class AdaptedWeights {
  readonly #addon: NativeAddon;
  readonly #targets: ReadonlyMap<string, MergeTarget>;
  readonly #replaced: ReadonlyMap<string, Replacement>;
  readonly #read: (name: string) => Promise<Float32Array>;

  /** `holds`: whether the caller asks for a tensor of this name (experts stacked or apart). Error: PL_ADAPTER_INVALID. */
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
    this.#replaced = adapter === null ? new Map() : replacements(lora!);
    this.#read = adapter === null ? nothing : adapterMatrices(adapter, lora!.matrices);
  }

  /** Names of adapted tensors, those of the model and of the checkpoint. */
  get names(): ReadonlySet<string> {
    return new Set([...this.#targets.keys(), ...this.#replaced.keys()]);
  }

  /** A stored tensor in `dtype`: the sum is made in float32 and rounded once. */
  async values(name: string, location: TensorLocation, dtype: FloatDtype): Promise<WeightValues> {
    const replacement = this.#replaced.get(name);
    if (replacement !== undefined) return { bytes: await this.#replace(location, dtype, replacement), dtype };
    return this.added(name, { bytes: await collected(convertedTensor(location, dtype)), dtype });
  }

  /** Values of that tensor with what the adapter adds. Changes them in place. */
  async added(name: string, values: WeightValues): Promise<WeightValues> {
    const found = this.#targets.get(name);
    if (found === undefined) return values;
    return found.target.dora ? this.#scaled(values, found) : this.#sum(values, found);
  }

  async #sum(values: WeightValues, { target, parts }: MergeTarget): Promise<WeightValues> {
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

  /** DoRA's rows, of an embedding its columns, are as long as their magnitudes say: of the sum in float32, which is rounded once. */
  async #scaled(values: WeightValues, merge: MergeTarget): Promise<WeightValues> {
    const { dtype } = values;
    const wide: WeightValues = { bytes: bytesOf(toFloat32(values.bytes, dtype)!), dtype: "float32" };
    const magnitudes = await this.#read(magnitudeName(merge.target.name));
    const sum = float32Of((await this.#sum(wide, merge)).bytes);
    const { in: input, out, role } = merge.target;
    // Of a linear [out, in], of an embedding [in, out].
    const [columns, byColumn] = role === "embedding" ? [out, true] : [input, false];
    const each = (visit: (at: number, line: number) => void) => {
      for (let row = 0, at = 0; at < sum.length; row++) {
        for (let column = 0; column < columns; column++, at++) visit(at, byColumn ? column : row);
      }
    };
    const squares = new Float64Array(out);
    each((at, line) => {
      squares[line]! += sum[at]! * sum[at]!;
    });
    const factors = squares.map((square, line) => magnitudes[line]! / Math.sqrt(square));
    each((at, line) => {
      sum[at]! *= factors[line]!;
    });
    return { bytes: fromFloat32(sum, dtype), dtype };
  }

  async #replace(location: TensorLocation, dtype: FloatDtype, { matrix, rows }: Replacement): Promise<Uint8Array> {
    const values = fromFloat32(await this.#read(matrix), dtype);
    if (rows === null) return values;
    const table = await collected(convertedTensor(location, dtype));
    const bytes = values.length / rows.length;
    for (const [index, row] of rows.entries()) {
      table.set(values.subarray(index * bytes, (index + 1) * bytes), row * bytes);
    }
    return table;
  }

  /** The float32 values of a quantised weight. */
  async expanded(packed: PackedWeight<Uint8Array>): Promise<WeightValues> {
    return { bytes: await this.#addon.dequantize(packed, "float32", THREADS), dtype: "float32" };
  }
}

const nothing = (): Promise<Float32Array> => Promise.reject(new Error("no adapter is read"));

async function collected(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for await (const piece of pieces) all.push(piece);
  return all.length === 1 ? all[0]! : Buffer.concat(all);
}
