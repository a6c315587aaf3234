import { join } from "node:path";
import { z } from "zod";
import { elementCount } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { readJsonFile } from "../common/files.ts";
import type { TensorLocation } from "./safetensors.ts";

/*
 * Weights that a checkpoint stores in e4m3 with scales beside them, as transformers' FineGrainedFP8Config has them (DeepSeek-V3, Qwen3's FP8
 * checkpoints: X.weight and X.weight_scale_inv, a scale for each block of 128 x 128) and compressed-tensors' float-quantized (X.weight and
 * X.weight_scale: a scale a tensor, a row or a block). A value is code times scale. Here such a weight is a bfloat16 tensor, each value
 * rounded once, as both libraries expand it.
 */

/** Scales of a tensor in e4m3 [out, in]: one for each block, rows of blocks one after the other. */
export interface Scales {
  readonly location: TensorLocation;
  readonly block: readonly [rows: number, columns: number];
}

const MAX_CONFIG_BYTES = 16 << 20;

const group = z.looseObject({
  weights: z.looseObject({
    strategy: z.string().max(64).nullish(),
    block_structure: z.array(z.number().int().positive()).length(2).nullish(),
  }),
});
const configSchema = z.looseObject({
  quantization_config: z
    .looseObject({
      weight_block_size: z.array(z.number().int().positive()).length(2).nullish(),
      config_groups: z.record(z.string(), group).nullish(),
    })
    .nullish(),
});

/** The tensors with those in e4m3 as what they stand for, their scales gone from the names. Error: PL_QUANTIZATION_INVALID. */
export async function withScaledWeights(
  dir: string,
  tensors: ReadonlyMap<string, TensorLocation>,
): Promise<ReadonlyMap<string, TensorLocation>> {
  const stored = [...tensors].filter(([, { dtype, shape }]) => dtype === "float8_e4m3fn" && shape.length === 2);
  if (stored.length === 0) return tensors;
  const block = await blockOf(dir);
  const all = new Map(tensors);
  for (const [name, location] of stored) {
    const scales = [`${name}_scale_inv`, `${name}_scale`].find((candidate) => tensors.has(candidate));
    if (scales === undefined)
      throw invalid(`${name} is in e4m3, but neither ${name}_scale_inv nor ${name}_scale is there`);
    all.set(name, {
      ...location,
      dtype: "bfloat16",
      bytes: 2 * elementCount(location.shape),
      scales: scalesOf(name, location, scales, tensors.get(scales)!, block),
    });
    all.delete(scales);
    // Scales of activations, whose products are not made here.
    all.delete(name.replace(/weight$/, "input_scale"));
  }
  return all;
}

function scalesOf(
  name: string,
  { shape }: TensorLocation,
  scaleName: string,
  location: TensorLocation,
  block: readonly [number, number] | null,
): Scales {
  const [out, input] = shape as [number, number];
  if (location.dtype !== "float32" && location.dtype !== "bfloat16" && location.dtype !== "float16")
    throw invalid(`${scaleName} is ${location.dtype}, expected float32, bfloat16 or float16`);
  const blocks: (readonly [number, number])[] = [[out, input], [1, input], ...(block === null ? [] : [block])];
  const found = blocks.find(([rows, columns]) => {
    const grid = [Math.ceil(out / rows), Math.ceil(input / columns)] as const;
    // [1] and [] are [1, 1], and [out] is [out, 1].
    const long = (extents: readonly number[]) => JSON.stringify(extents.filter((extent) => extent !== 1));
    return long(location.shape) === long(grid);
  });
  if (found !== undefined) return { location, block: found };
  const expected = blocks.map(([rows, columns]) => `[${Math.ceil(out / rows)}, ${Math.ceil(input / columns)}]`);
  throw invalid(
    `${scaleName} has shape [${location.shape.join(", ")}], expected one of ${expected.join(", ")} for ${name} [${out}, ${input}]`,
  );
}

/** Of the blocks that config.json gives scales; null: none. */
async function blockOf(dir: string): Promise<readonly [number, number] | null> {
  const parsed = configSchema.safeParse(await readJsonFile(join(dir, "config.json"), MAX_CONFIG_BYTES));
  if (!parsed.success) throw invalid(`config.json: quantization_config: ${parsed.error.issues[0]!.message}`);
  const section = parsed.data.quantization_config;
  const structures = Object.values(section?.config_groups ?? {}).map(({ weights }) => weights.block_structure);
  const block = section?.weight_block_size ?? structures.find((structure) => structure != null) ?? null;
  return block === null ? null : [block[0]!, block[1]!];
}

/**
 * codes [rows, columns] of e4m3 from row `first` of their matrix on, times their scales, in bfloat16: rounded once, to nearest even.
 * `scales`: all of the matrix.
 */
export function expandCodes(
  codes: Uint8Array,
  columns: number,
  first: number,
  scales: Float32Array,
  [blockRows, blockColumns]: readonly [number, number],
): Uint8Array {
  const across = Math.ceil(columns / blockColumns);
  const product = new Float32Array(1);
  const word = new Uint32Array(product.buffer);
  const bits = new Uint16Array(codes.length);
  for (let row = 0, at = 0; at < codes.length; row += 1) {
    const line = Math.floor((first + row) / blockRows) * across;
    for (let column = 0; column < columns; column += 1, at += 1) {
      product[0] = E4M3[codes[at]!]! * scales[line + Math.floor(column / blockColumns)]!;
      const found = word[0]!;
      const nan = (found & 0x7fffffff) > 0x7f800000;
      bits[at] = nan ? (found >>> 16) | 0x40 : (found + 0x7fff + ((found >>> 16) & 1)) >>> 16;
    }
  }
  return new Uint8Array(bits.buffer);
}

/** What the codes of e4m3 stand for: four bits of exponent (bias 7), three of fraction; NaN where all are set, no infinities. */
const E4M3 = Float32Array.from({ length: 256 }, (_, code) => {
  const exponent = (code >> 3) & 15;
  const fraction = code & 7;
  const sign = code & 0x80 ? -1 : 1;
  if (exponent === 15 && fraction === 7) return Number.NaN;
  return sign * (exponent === 0 ? (fraction / 8) * 2 ** -6 : (1 + fraction / 8) * 2 ** (exponent - 7));
});

function invalid(message: string): PipeloraError {
  return new PipeloraError("PL_QUANTIZATION_INVALID", `${message}.`, {
    hint: "config.json and the weights must come from the same checkpoint.",
  });
}
