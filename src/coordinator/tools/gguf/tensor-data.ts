import { dtypeBytes, elementCount, type FloatDtype, isFloatDtype } from "../../../common/dtype.ts";
import { PipeloraError } from "../../../common/errors.ts";
import type { PackedMx } from "../../../common/quantization.ts";
import {
  encodeMxfp4,
  encodeValues,
  fitsRows,
  type GgufType,
  type RoundedType,
} from "../../../formats/gguf/tensor-types.ts";
import type { GgufTensor } from "../../../formats/gguf/write.ts";
import { loadPackedArrays } from "../../../formats/quantized-state.ts";
import { convertedTensor, readTensor, type TensorLocation } from "../../../formats/safetensors.ts";
import { packedExperts, type SlicedLocation } from "../../../formats/stacked-experts.ts";
import { modelStacks } from "../../../models/experts.ts";
import type { ModelSetup } from "../../planning/model-setup.ts";
import type { AdaptedWeights } from "../adapted-weights.ts";
import type { Layout, Piece } from "./tensors.ts";

/** Types that values of a checkpoint's dtype are carried over to without a change. */
const CARRIED: Readonly<Record<FloatDtype, RoundedType>> = { float32: "f32", float16: "f16", bfloat16: "bf16" };
const LARGEST_HALF = 65504;

/** The bytes of the file's tensors, made one tensor at a time (of experts, one matrix at a time), so that memory stays small. */
export class TensorData {
  readonly #setup: ModelSetup;
  readonly #weights: AdaptedWeights;
  readonly #packedExperts: ReadonlyMap<string, PackedMx<TensorLocation>>;

  constructor(setup: ModelSetup, weights: AdaptedWeights) {
    this.#setup = setup;
    this.#weights = weights;
    this.#packedExperts = packedExperts(setup.checkpoint!, modelStacks(setup.spec)).packed;
  }

  tensor(layout: Layout, wanted: RoundedType): GgufTensor {
    const type = typeOf(layout, wanted);
    return { name: layout.name, shape: layout.shape, type, data: () => this.#data(layout, type) };
  }

  async *#data(layout: Layout, type: GgufType): AsyncGenerator<Uint8Array> {
    for (const piece of layout.pieces) {
      if (type === "mxfp4") {
        yield await this.#carried(piece);
        continue;
      }
      const location = this.#plainLocation(piece, layout);
      if (location !== null && isFloatDtype(location.dtype) && CARRIED[location.dtype] === type) {
        yield* convertedTensor(location, location.dtype);
      } else if (location !== null) {
        for await (const bytes of convertedTensor(location, "float32")) yield encoded(layout, floats(bytes), type);
      } else {
        const values = arranged(piece, await this.#values(piece.source));
        const { value } = layout;
        yield encoded(layout, value === undefined ? values : values.map(value), type);
      }
    }
  }

  /** Where the piece lies in the form in which it is written; null: it has to be computed. */
  #plainLocation({ source, rows, columns, turnedHeads }: Piece, { value }: Layout): SlicedLocation | null {
    if (rows !== null || columns !== null || turnedHeads !== undefined || value !== undefined) return null;
    const module = moduleOf(source);
    if (this.#weights.names.has(source) || this.#setup.packed.has(module)) return null;
    const location: SlicedLocation = this.#setup.checkpoint!.locate(source);
    return location.transposed === true ? null : location;
  }

  /** All of a tensor, merged, as rows [out, in]. */
  async #values(source: string): Promise<Matrix> {
    const module = moduleOf(source);
    const packed = this.#setup.packed.get(module);
    if (packed !== undefined && source.endsWith(".weight")) {
      const { bytes } = await this.#weights.added(source, await this.#weights.expanded(await loadPackedArrays(packed)));
      return { values: floats(bytes), columns: packed.shape[1] };
    }
    const location: SlicedLocation = this.#setup.checkpoint!.locate(source);
    if (location.transposed === true) {
      const [out, input] = location.shape as [number, number];
      const read = floats(await joined(convertedTensor({ ...location, shape: [input, out] }, "float32")));
      const turned = turn(read, input, out);
      const { bytes } = await this.#weights.added(source, { bytes: bytesOf(turned), dtype: "float32" });
      return { values: floats(bytes), columns: input };
    }
    const { bytes } = await this.#weights.values(source, location, "float32");
    const { shape } = location;
    return { values: floats(bytes), columns: shape.length < 2 ? elementCount(shape) : shape.at(-1)! };
  }

  async #carried({ source, rows }: Piece): Promise<Uint8Array> {
    const { codes, scales, shape } = this.#packedExperts.get(moduleOf(source))!;
    const blocks = shape[1] / 32;
    const [allCodes, allScales] = [await readTensor(codes), await readTensor(scales)];
    if (rows === null) return encodeMxfp4(allCodes, allScales);
    return encodeMxfp4(pickRows(allCodes, rows, blocks * 16), pickRows(allScales, rows, blocks));
  }
}

interface Matrix {
  readonly values: Float32Array;
  readonly columns: number;
}

const moduleOf = (source: string) => source.replace(/\.weight$/, "");

/** The type of a tensor: float32 for small and sensitive ones, float16 where rows are not whole blocks. */
export function typeOf({ shape, exact, packed }: Layout, wanted: RoundedType): GgufType {
  if (packed !== undefined) return packed;
  if (exact) return "f32";
  return fitsRows(wanted, shape.at(-1)!) ? wanted : "f16";
}

function arranged({ rows, columns, turnedHeads }: Piece, { values, columns: width }: Matrix): Float32Array {
  const picked = rows === null ? values : pickRows(values, rows, width);
  const ordered = columns === null ? picked : pickColumns(picked, columns, width);
  if (turnedHeads === undefined) return ordered;
  const result = new Float32Array(ordered.length);
  const size = ordered.length / turnedHeads;
  for (let at = 0; at < ordered.length; at += size) {
    result.set(turn(ordered.subarray(at, at + size), size / width, width), at);
  }
  return result;
}

function pickRows<T extends Float32Array | Uint8Array>(values: T, rows: Int32Array, width: number): T {
  const result = new (values.constructor as { new (length: number): T })(rows.length * width);
  for (const [at, row] of rows.entries()) result.set(values.subarray(row * width, (row + 1) * width), at * width);
  return result;
}

function pickColumns(values: Float32Array, columns: Int32Array, width: number): Float32Array {
  const rows = values.length / width;
  const result = new Float32Array(rows * columns.length);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < columns.length; i++) result[row * columns.length + i] = values[row * width + columns[i]!]!;
  }
  return result;
}

/** [rows, columns] as [columns, rows]. */
function turn(values: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * rows + row] = values[row * columns + column]!;
  }
  return result;
}

/** Error: PL_QUANTIZATION_INVALID for values that this type can't represent. */
function encoded({ name }: Pick<Layout, "name">, values: Float32Array, type: RoundedType): Uint8Array {
  if (type !== "f32" && type !== "bf16") {
    const most = type === "f16" ? LARGEST_HALF : LARGEST_HALF * 127;
    for (const value of values) {
      if (Math.abs(value) <= most) continue;
      throw new PipeloraError("PL_QUANTIZATION_INVALID", `${name} holds ${value}, which ${type} can't.`, {
        hint: "Use --outtype bf16 or f32, or repair the checkpoint.",
      });
    }
  }
  return encodeValues(values, type);
}

function floats(bytes: Uint8Array): Float32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  return new Float32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / dtypeBytes("float32"));
}

function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

async function joined(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for await (const piece of pieces) all.push(piece);
  return Buffer.concat(all);
}
