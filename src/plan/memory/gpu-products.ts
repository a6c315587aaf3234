import type { LoraTarget } from "../../models/lora-targets.ts";
import type { BlockLayer, LinearRole, LinearSpec } from "../../models/spec.ts";
import { type Holding, isQuantized } from "./held-sizes.ts";

/** A product on a GPU. Linears with the same input are its parts: their rows are stacked in one weight (native/model/block.cpp). */
export interface GpuProduct {
  readonly in: number;
  /** Outputs of all parts together. */
  readonly out: number;
  /** How many experts' matrices, of equal size, its weight stacks. Absent: one matrix. */
  readonly matrices?: number;
  readonly partRows: readonly number[];
  /** LoRA rank of each part; 0: none. */
  readonly ranks: readonly number[];
  readonly dropout: boolean;
  readonly bias: boolean;
  readonly quantized: boolean;
  /** Set where the weight is held as the checkpoint packs it, whatever the base's quantisation is. */
  readonly packed?: "mxfp4";
  /** Whether it multiplies e4m3 numbers. */
  readonly e4m3: boolean;
}

export interface BlockProducts {
  /** The product of the block's input: q, k and v, or what another kind of attention needs. */
  readonly qkv: GpuProduct;
  /** Products that expand latent vectors. */
  readonly expansions: readonly GpuProduct[];
  readonly o: GpuProduct;
  readonly gateUp: GpuProduct;
  readonly down: GpuProduct;
}

const NO_PRODUCT: GpuProduct = {
  ...{ in: 0, out: 0, partRows: [], ranks: [], dropout: false, bias: false, quantized: false, e4m3: false },
};

/** The products of a block. A block without an MLP has MLP products of size 0. `pairs`: all of the block. */
export function blockProducts(block: BlockLayer, pairs: readonly LoraTarget[], holding: Holding): BlockProducts {
  const of = (...roles: readonly LinearRole[]) =>
    gpuProduct(
      block.linears.filter(({ role }) => roles.includes(role)),
      pairs,
      holding,
    );
  const ups = (["q_b", "kv_b"] as const).filter((role) => block.linears.some((linear) => linear.role === role));
  return {
    qkv: of(...INPUT_ROLES),
    expansions: ups.map((role) => of(role)),
    o: of("o"),
    gateUp: of("gate_up", "gate", "up"),
    down: of("down"),
  };
}

const INPUT_ROLES: readonly LinearRole[] = [
  ...(["qkv", "q", "k", "v", "q_a", "kv_a"] as const),
  ...(["delta_qkv", "delta_z", "delta_b", "delta_a", "delta_qkvz", "delta_ba"] as const),
];

/** In the order they run. */
export function allProducts({ qkv, expansions, o, gateUp, down }: BlockProducts): GpuProduct[] {
  return [qkv, ...expansions, o, gateUp, down];
}

function gpuProduct(linears: readonly LinearSpec[], pairs: readonly LoraTarget[], holding: Holding): GpuProduct {
  if (linears.length === 0) return NO_PRODUCT;
  const own = linears.map(({ name }) => pairs.find((pair) => pair.name === name) ?? null);
  return {
    in: linears[0]!.in,
    out: sum(linears.map(({ out }) => out)),
    partRows: linears.map(({ out }) => out),
    ranks: own.map((pair) => pair?.r ?? 0),
    dropout: own.some((pair) => pair !== null && pair.dropout > 0),
    bias: linears.some(({ bias }) => bias),
    quantized: linears.every((linear) => isQuantized(linear, holding)),
    e4m3: holding.fp8 && linears.every(suitsE4m3),
  };
}

/** Whether a linear can multiply e4m3 numbers: rows of its operands must be multiples of 16 (native/ops/cuda/kernel_choice.h: kFp8Piece). */
export function suitsE4m3({ in: input, out }: Pick<LinearSpec, "in" | "out">): boolean {
  return input % 16 === 0 && out % 16 === 0;
}

/** The output head as a product; never quantised. */
export function headProduct(hidden: number, vocab: number, pair: LoraTarget | null): GpuProduct {
  const ranks = [pair?.r ?? 0];
  const dropout = (pair?.dropout ?? 0) > 0;
  return { in: hidden, out: vocab, partRows: [vocab], ranks, dropout, bias: false, quantized: false, e4m3: false };
}

/** Columns that LoRA's inner vectors add to a product's input and weight (native/ops/cuda/lora/lora.h: tail_columns). */
export function tailColumns({ ranks }: GpuProduct): number {
  return roundUp(sum(ranks), 64);
}

/** Whether LoRA's products run in cuBLASLt instead of the fused kernels (native/ops/cuda/kernel_choice.h: kMostFusedRank). */
export function runsAsProducts({ ranks }: GpuProduct): boolean {
  return ranks.some((rank) => rank > MOST_FUSED_RANK);
}
const MOST_FUSED_RANK = 16;

export function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

export function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
