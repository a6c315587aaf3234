import { createHash } from "node:crypto";
import { PipeloraError } from "../common/errors.ts";
import type { LoraSettings } from "../common/lora-settings.ts";
import { Philox } from "../common/philox.ts";

/** The part of a LoRA target that its first values depend on. */
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
    default:
      throw new PipeloraError(
        "PL_CONFIG_INVALID",
        `init_lora_weights "${settings.initLoraWeights}" is not supported.`,
        {
          hint: 'Use true, false or "gaussian".',
        },
      );
  }
  return { a, b };
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
