import { createHash } from "node:crypto";
import { PipeloraError } from "../common/errors.ts";
import type { LoraSettings } from "../common/lora-settings.ts";
import { Philox } from "../common/philox.ts";

/** The part of a LoRA target on which its first values depend. */
export interface PairShape {
  readonly name: string;
  readonly r: number;
  readonly in: number;
  readonly out: number;
  /** Of a parameter of all experts at once: how many; r is that of all together. Absent: 1. */
  readonly experts?: number;
  /** Of an embedding, whose A is zero and B N(0, 1). */
  readonly embedding?: boolean;
}

export interface PairValues {
  /** [r, in] */
  readonly a: Float32Array;
  /** [out, r] */
  readonly b: Float32Array;
}

/**
 * First values of a pair as peft sets them: true: A ~ U(±1/√in) (kaiming uniform, a = √5), B = 0; "gaussian":
 * A ~ N(0, 1/r), B = 0; false: both uniform, B ~ U(±1/√r). An embedding's: A = 0, B ~ N(0, 1); false: both normal. Every number depends on (seed, module name, matrix, position)
 * alone, so it is the same on whatever device the module lies. Error: PL_CONFIG_INVALID for other initialisations.
 */
export function initLora(shape: PairShape, settings: Pick<LoraSettings, "initLoraWeights">, seed: number): PairValues {
  const a = new Float32Array(shape.r * shape.in);
  const b = new Float32Array(shape.out * shape.r);
  if (shape.embedding) {
    const all = settings.initLoraWeights === false;
    if (all) fillNormal(a, seed, `${shape.name}.lora_embedding_A`, 1);
    fillNormal(b, seed, `${shape.name}.lora_embedding_B`, 1);
    return { a, b };
  }
  switch (settings.initLoraWeights) {
    case true:
      fillUniform(a, seed, `${shape.name}.lora_A`, 1 / Math.sqrt(shape.in));
      break;
    case false:
      fillUniform(a, seed, `${shape.name}.lora_A`, 1 / Math.sqrt(shape.in));
      fillUniform(b, seed, `${shape.name}.lora_B`, 1 / Math.sqrt(shape.r));
      break;
    case "gaussian":
      fillNormal(a, seed, `${shape.name}.lora_A`, (shape.experts ?? 1) / shape.r);
      break;
    case "orthogonal":
      fillOrthogonal(shape, a, b, seed);
      break;
    default:
      throw new PipeloraError(
        "PL_CONFIG_INVALID",
        `init_lora_weights "${settings.initLoraWeights}" is not supported.`,
        {
          hint: 'Use true, false, "gaussian" or "orthogonal", or what is made of the base: "pissa", "pissa_niter_N", "olora", "loftq".',
        },
      );
  }
  return { a, b };
}

/** peft's orthogonal: A from the odd rows of an orthonormal matrix, B from the even ones, so that B A is zero though neither is. */
function fillOrthogonal({ name, r, in: input, out }: PairShape, a: Float32Array, b: Float32Array, seed: number): void {
  if (r % 2 !== 0) {
    throw new PipeloraError("PL_CONFIG_INVALID", `init_lora_weights orthogonal needs an even rank, ${name} has ${r}.`, {
      hint: "Give an even lora_r.",
    });
  }
  const half = r / 2;
  const square = normals(r * r, seed, `${name}.orthogonal`);
  const rows: number[][] = [];
  for (let i = 0; i < r; i++) {
    const row = Array.from(square.subarray(i * r, (i + 1) * r));
    for (let pass = 0; pass < 2; pass++) {
      for (const other of rows) {
        const share = other.reduce((sum, value, k) => sum + value * row[k]!, 0);
        other.forEach((value, k) => {
          row[k]! -= share * value;
        });
      }
    }
    const norm = Math.hypot(...row);
    rows.push(row.map((value) => value / norm));
  }
  const mix = (
    shares: Float32Array,
    of: readonly number[][],
    count: number,
    put: (i: number, k: number, value: number) => void,
  ) => {
    for (let i = 0; i < count; i++) {
      for (let k = 0; k < r; k++) put(i, k, of.reduce((sum, row, j) => sum + shares[i * half + j]! * row[k]!, 0) / 10);
    }
  };
  const [odd, even] = [rows.filter((_, i) => i % 2 === 0), rows.filter((_, i) => i % 2 === 1)];
  mix(normals(input * half, seed, `${name}.lora_A`), odd, input, (i, k, value) => {
    a[k * input + i] = value;
  });
  mix(normals(out * half, seed, `${name}.lora_B`), even, out, (i, k, value) => {
    b[i * r + k] = value;
  });
}

function normals(count: number, seed: number, name: string): Float32Array {
  const values = new Float32Array(count);
  fillNormal(values, seed, name, 1);
  return values;
}

/** Calls `use` with the four words of each block of the stream (seed, name), block by block. */
function drawBlocks(
  blocks: number,
  seed: number,
  name: string,
  use: (block: number, words: Uint32Array) => void,
): void {
  const digest = createHash("sha256").update(name).digest();
  const [stream0, stream1] = [digest.readUInt32LE(0), digest.readUInt32LE(4)];
  const generator = new Philox(seed, Math.floor(seed / 2 ** 32));
  const words = new Uint32Array(4);
  for (let block = 0; block < blocks; block++) {
    generator.block(block, 0, stream0, stream1, words);
    use(block, words);
  }
}

function fillUniform(out: Float32Array, seed: number, name: string, bound: number): void {
  drawBlocks(Math.ceil(out.length / 4), seed, name, (block, words) => {
    for (let i = 0; i < 4; i++) out[block * 4 + i] = (2 * (words[i]! / 2 ** 32) - 1) * bound;
  });
}

/** Box–Muller, two pairs a block. */
function fillNormal(out: Float32Array, seed: number, name: string, deviation: number): void {
  drawBlocks(Math.ceil(out.length / 4), seed, name, (block, words) => {
    for (let i = 0; i < 4; i += 2) {
      const radius = Math.sqrt(-2 * Math.log((words[i]! + 1) / 2 ** 32)) * deviation;
      const angle = 2 * Math.PI * (words[i + 1]! / 2 ** 32);
      out[block * 4 + i] = radius * Math.cos(angle);
      out[block * 4 + i + 1] = radius * Math.sin(angle);
    }
  });
}
