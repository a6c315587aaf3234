import type { LoraTarget } from "../../models/lora-targets.ts";
import type { BlockLayer, LinearRole, LinearSpec } from "../../models/spec.ts";
import { type Holding, isQuantized } from "./held-sizes.ts";

/** Linears that share an input are one product and one weight on a GPU, one part below the other (native/model/block.cpp). */
export interface GpuProduct {
  readonly in: number;
  /** Of all parts. */
  readonly out: number;
  /** Matrices that its weight holds one below the other (experts'), of as many outputs each; absent: one. */
  readonly matrices?: number;
  readonly partRows: readonly number[];
  /** LoRA rank of each part; 0: none. */
  readonly ranks: readonly number[];
  readonly dropout: boolean;
  readonly bias: boolean;
  readonly quantized: boolean;
  /** Held as its checkpoint packs it, whatever the base's quantisation is; absent: not. */
  readonly packed?: "mxfp4";
  /** Multiplies e4m3 numbers. */
  readonly e4m3: boolean;
}

export interface BlockProducts {
  /** Of the block's input: q, k and v, or what another kind of attention takes. */
  readonly qkv: GpuProduct;
  /** Of latent vectors. */
  readonly expansions: readonly GpuProduct[];
  readonly o: GpuProduct;
  readonly gateUp: GpuProduct;
  readonly down: GpuProduct;
}

const NO_PRODUCT: GpuProduct = {
  ...{ in: 0, out: 0, partRows: [], ranks: [], dropout: false, bias: false, quantized: false, e4m3: false },
};

/** The products of a block, those of an MLP of no size where it has none; `pairs`: the block's. */
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

/** e4m3 operands' rows are whole pieces of 16 (native/ops/cuda/kernel_choice.h: kFp8Piece). */
export function suitsE4m3({ in: input, out }: Pick<LinearSpec, "in" | "out">): boolean {
  return input % 16 === 0 && out % 16 === 0;
}

/** The output head as a product; never quantised. */
export function headProduct(hidden: number, vocab: number, pair: LoraTarget | null): GpuProduct {
  const ranks = [pair?.r ?? 0];
  const dropout = (pair?.dropout ?? 0) > 0;
  return { in: hidden, out: vocab, partRows: [vocab], ranks, dropout, bias: false, quantized: false, e4m3: false };
}

/** Columns behind those of a product's input and weight, for LoRA's inner vectors (native/ops/cuda/lora/lora.h: tail_columns). */
export function tailColumns({ ranks }: GpuProduct): number {
  return roundUp(sum(ranks), 64);
}

/** Whether LoRA's products run through cuBLASLt, not in the fused kernels (native/ops/cuda/kernel_choice.h: kMostFusedRank). */
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
