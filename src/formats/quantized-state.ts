import { z } from "zod";
import { type Dtype, type FloatDtype, isFloatDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import {
  BLOCK_SIZES,
  NESTED_BLOCK_SIZE,
  NESTED_CODES,
  type PackedWeight,
  type QuantizationSettings,
  type QuantizedHold,
  type QuantType,
} from "../common/quantization.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { readTensor, type TensorLocation } from "./safetensors.ts";

/*
 * bitsandbytes' serialised form of a quantised linear `X`. 4 bits: X.weight (uint8 [(N K + 1) / 2, 1]) and under it .absmax,
 * .quant_map, with double quantisation .nested_absmax and .nested_quant_map, and .quant_state.bitsandbytes__nf4 or __fp4, the
 * bytes of a JSON object. 8 bits: X.weight (int8 [N, K]), X.SCB, X.weight_format.
 */

export interface QuantizableLinear {
  /** Module path. */
  readonly name: string;
  readonly in: number;
  readonly out: number;
}

/** By the module's path. */
export type PackedWeights = ReadonlyMap<string, PackedWeight<TensorLocation>>;

const MAX_STATE_BYTES = 1 << 16;
const ROW_MAJOR = 0;

const fourBitState = z.looseObject({
  quant_type: z.string(),
  blocksize: z.number(),
  dtype: z.string(),
  shape: z.array(z.number()),
  nested_blocksize: z.number().optional(),
  nested_dtype: z.string().optional(),
  nested_offset: z.number().optional(),
});

/**
 * Finds and checks the state of every linear, except those that `skipped` names. Reads only the small tensors that describe the others.
 * `dtype`: the model's. Errors: PL_QUANTIZATION_INVALID, naming tensor and fault.
 */
export async function readPackedWeights(
  checkpoint: Checkpoint,
  linears: readonly QuantizableLinear[],
  settings: QuantizationSettings,
  skipped: ReadonlySet<string>,
  dtype: FloatDtype,
): Promise<PackedWeights> {
  const packed = new Map<string, PackedWeight<TensorLocation>>();
  for (const linear of linears) {
    const found = checkpoint.locate(`${linear.name}.weight`).dtype;
    const quantized = found === "uint8" || found === "int8";
    if (skipped.has(linear.name)) {
      if (quantized) {
        throw invalid(`${linear.name}.weight is ${found}, but llm_int8_skip_modules leaves this layer unquantised`);
      }
      continue;
    }
    packed.set(
      linear.name,
      settings.method === "4bit"
        ? await fourBitWeight(checkpoint, linear, settings.quantType)
        : await eightBitWeight(checkpoint, linear, settings.threshold, dtype),
    );
  }
  return packed;
}

async function fourBitWeight(
  checkpoint: Checkpoint,
  { name, in: input, out }: QuantizableLinear,
  quantType: QuantType,
): Promise<PackedWeight<TensorLocation>> {
  const weight = `${name}.weight`;
  const other = `${weight}.${stateSuffix(quantType === "nf4" ? "fp4" : "nf4")}`;
  if (checkpoint.has(other)) throw invalid(`${other} stands there, but config.json says ${quantType}`);
  const stateName = `${weight}.${stateSuffix(quantType)}`;
  const state = await readState(stateName, locate(checkpoint, stateName, "uint8"));
  const expect = (field: string, wanted: unknown, found: unknown) => {
    if (JSON.stringify(found) !== JSON.stringify(wanted)) {
      throw invalid(
        `${stateName}: ${field} is ${JSON.stringify(found) ?? "missing"}, expected ${JSON.stringify(wanted)}`,
      );
    }
  };
  expect("quant_type", quantType, state.quant_type);
  expect("shape", [out, input], state.shape);
  const { blocksize: blockSize, dtype } = state;
  if (!Number.isInteger(Math.log2(blockSize)) || blockSize < BLOCK_SIZES.least || blockSize > BLOCK_SIZES.most) {
    throw invalid(
      `${stateName}: blocksize is ${blockSize}, expected a power of two from ${BLOCK_SIZES.least} to ${BLOCK_SIZES.most}`,
    );
  }
  if (!isFloatDtype(dtype)) {
    throw invalid(`${stateName}: dtype is "${dtype}", expected float32, bfloat16 or float16`);
  }
  const blocks = Math.ceil((out * input) / blockSize);
  const doubleQuant = state.nested_blocksize !== undefined || checkpoint.has(`${weight}.nested_absmax`);
  if (doubleQuant) {
    expect("nested_blocksize", NESTED_BLOCK_SIZE, state.nested_blocksize);
    expect("nested_dtype", "float32", state.nested_dtype);
    if (!Number.isFinite(state.nested_offset)) throw invalid(`${stateName}: nested_offset is missing`);
  }
  return {
    hold: { method: "4bit", dtype, quantType, doubleQuant, blockSize },
    shape: [out, input],
    codes: locate(checkpoint, weight, "uint8", [Math.ceil((out * input) / 2), 1]),
    absmax: locate(checkpoint, `${weight}.absmax`, doubleQuant ? "uint8" : "float32", [blocks]),
    quantMap: locate(checkpoint, `${weight}.quant_map`, "float32", [16]),
    nested: doubleQuant
      ? {
          absmax: locate(checkpoint, `${weight}.nested_absmax`, "float32", [Math.ceil(blocks / NESTED_BLOCK_SIZE)]),
          quantMap: locate(checkpoint, `${weight}.nested_quant_map`, "float32", [NESTED_CODES]),
          offset: state.nested_offset!,
        }
      : null,
  };
}

async function eightBitWeight(
  checkpoint: Checkpoint,
  { name, in: input, out }: QuantizableLinear,
  threshold: number,
  dtype: FloatDtype,
): Promise<PackedWeight<TensorLocation>> {
  const format = `${name}.weight_format`;
  if (checkpoint.has(format)) {
    const [value] = await readTensor(locate(checkpoint, format, "uint8", []));
    if (value !== ROW_MAJOR) {
      throw invalid(`${format} is ${value}, expected ${ROW_MAJOR} (rows): weights in a GPU's tile order are not read`);
    }
  }
  return {
    hold: { method: "8bit", dtype, threshold },
    shape: [out, input],
    codes: locate(checkpoint, `${name}.weight`, "int8", [out, input]),
    scb: locate(checkpoint, `${name}.SCB`, "float32", [out]),
  };
}

async function readState(name: string, location: TensorLocation): Promise<z.infer<typeof fourBitState>> {
  if (location.bytes > MAX_STATE_BYTES)
    throw invalid(`${name} has ${location.bytes} bytes, which is no quantiser's state`);
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(await readTensor(location)));
  } catch (cause) {
    throw invalid(`${name} is not JSON (${(cause as Error).message})`, cause);
  }
  const parsed = fourBitState.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  throw invalid(`${name}: ${issue.path.join(".") || "its top level"}: ${issue.message}`);
}

function locate(checkpoint: Checkpoint, name: string, dtype: Dtype, shape?: readonly number[]): TensorLocation {
  if (!checkpoint.has(name)) throw invalid(`${name} is missing`);
  const found = checkpoint.locate(name);
  const expected = shape ?? [found.bytes];
  if (found.dtype !== dtype || JSON.stringify(found.shape) !== JSON.stringify(expected)) {
    throw invalid(`${name} is ${found.dtype} [${found.shape.join(", ")}], expected ${dtype} [${expected.join(", ")}]`);
  }
  return found;
}

const stateSuffix = (quantType: QuantType) => `quant_state.bitsandbytes__${quantType}`;

/** A tensor of the serialised form, described before the weight is quantised. */
export interface PackedSlot {
  /** After the module's path and a dot. */
  readonly suffix: string;
  readonly dtype: Dtype;
  /** null: bytes [n], n at most MAX_QUANT_STATE_BYTES, known only afterwards. */
  readonly shape: readonly number[] | null;
}

/** Room for the JSON of a quant_state: its fields have bounded lengths. */
export const MAX_QUANT_STATE_BYTES = 512;

/** The tensors that a quantised [out, in] becomes. */
export function packedSlots(
  { in: input, out }: Pick<QuantizableLinear, "in" | "out">,
  hold: QuantizedHold,
): PackedSlot[] {
  if (hold.method === "8bit") {
    return [
      { suffix: "weight", dtype: "int8", shape: [out, input] },
      { suffix: "SCB", dtype: "float32", shape: [out] },
      { suffix: "weight_format", dtype: "uint8", shape: [] },
    ];
  }
  const blocks = Math.ceil((out * input) / hold.blockSize);
  const scales: PackedSlot[] = hold.doubleQuant
    ? [
        { suffix: "weight.absmax", dtype: "uint8", shape: [blocks] },
        { suffix: "weight.nested_absmax", dtype: "float32", shape: [Math.ceil(blocks / NESTED_BLOCK_SIZE)] },
        { suffix: "weight.nested_quant_map", dtype: "float32", shape: [NESTED_CODES] },
      ]
    : [{ suffix: "weight.absmax", dtype: "float32", shape: [blocks] }];
  return [
    { suffix: "weight", dtype: "uint8", shape: packedShape({ in: input, out }) },
    ...scales,
    { suffix: "weight.quant_map", dtype: "float32", shape: [16] },
    { suffix: `weight.${stateSuffix(hold.quantType)}`, dtype: "uint8", shape: null },
  ];
}

/** Shape of a 4-bit weight's codes. */
export function packedShape({ in: input, out }: Pick<QuantizableLinear, "in" | "out">): [number, number] {
  return [Math.ceil((out * input) / 2), 1];
}

/** Every tensor of a checkpoint that belongs to a packed weight. */
export function tensorNames(packed: PackedWeights): Set<string> {
  return new Set(
    [...packed].flatMap(([name, { hold }]) =>
      packedSlots({ in: 1, out: 1 }, hold).map(({ suffix }) => `${name}.${suffix}`),
    ),
  );
}

/** Reads a packed weight's arrays into memory. */
export async function loadPackedArrays(packed: PackedWeight<TensorLocation>): Promise<PackedWeight<Uint8Array>> {
  if (!("quantMap" in packed)) {
    return { ...packed, codes: await readTensor(packed.codes), scb: await readTensor(packed.scb) };
  }
  const { nested } = packed;
  return {
    ...packed,
    codes: await readTensor(packed.codes),
    absmax: await readTensor(packed.absmax),
    quantMap: await readTensor(packed.quantMap),
    nested:
      nested === null
        ? null
        : {
            ...nested,
            absmax: await readTensor(nested.absmax),
            quantMap: await readTensor(nested.quantMap),
          },
  };
}

/** The arrays among the tensors that a weight was quantised into. */
export function packedOf(
  tensors: readonly { readonly suffix: string; readonly bytes: Uint8Array }[],
  hold: QuantizedHold,
  shape: readonly [number, number],
): PackedWeight<Uint8Array> {
  const bytes = (suffix: string) => tensors.find((tensor) => tensor.suffix === suffix)!.bytes;
  if (hold.method === "8bit") return { hold, shape, codes: bytes("weight"), scb: bytes("SCB") };
  const state = JSON.parse(new TextDecoder().decode(bytes(`weight.${stateSuffix(hold.quantType)}`))) as {
    nested_offset?: number;
  };
  return {
    hold,
    shape,
    codes: bytes("weight"),
    absmax: bytes("weight.absmax"),
    quantMap: bytes("weight.quant_map"),
    nested: hold.doubleQuant
      ? {
          absmax: bytes("weight.nested_absmax"),
          quantMap: bytes("weight.nested_quant_map"),
          offset: state.nested_offset!,
        }
      : null,
  };
}

function invalid(message: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_QUANTIZATION_INVALID", `${message}.`, {
    hint: "Quantise the 16-bit checkpoint again (`coordinator quantize`), or load that one with --load-in-4bit or --load-in-8bit.",
    ...(cause === undefined ? {} : { cause }),
  });
}
