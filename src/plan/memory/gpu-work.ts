import type { ExpertsSpec, ModelShape } from "../../models/spec.ts";
import type { AttentionSizes } from "./attention-sizes.ts";
import { type BlockProducts, type GpuProduct, roundUp, runsAsProducts, sum, tailColumns } from "./gpu-products.ts";

const FLOAT32 = 4;

/** Bytes of the arena that one block takes on a GPU. */
export interface GpuBlockWork {
  /** Kept beside the block's input and LoRA's inner vectors, from forward to backward. */
  readonly kept: number;
  /** While the block runs, beside what is kept, its input and its output. */
  readonly workspace: number;
}

/**
 * A block that learns, of T tokens (names as in layer-memory.ts; t the tail of a product, see tailColumns). native/model/block.cpp
 * keeps q, k, v (a (H + 2K) E), attention's output with room for LoRA (a (H E + t)), log-sum-exp (4 H), the residual after attention
 * (a D), gate and up (2 a F). Beside it, whichever is most:
 *
 * - forward, SwiGLU's activation a (F + t) and its LoRA scratch; in 8 bits the integer sums of gate and up (8 F), the codes of
 *   their input (D + 4) and that input itself, a (D + t); in e4m3 the norm before gate and up, a (D + t), with codes and LoRA's part;
 * - backward through down: the activation a F, inner gradients, and LoRA's scratch or the widened gradient a (D + t) where LoRA
 *   joins the product (no dropout, and the output less than twice as wide as the input);
 * - backward through attention, gate, up and the residual being gone: gradients of its output and of q, k, v, row sums (4 H).
 */
export function gpuBlockWork(
  { hidden }: ModelShape,
  { inputs, output, expanded, sums, backward, gpu }: AttentionSizes,
  products: BlockProducts,
  eightBit: boolean,
  float: number,
  tokens: number,
): GpuBlockWork {
  const { o, gateUp, down } = products;
  const ffn = down.in;
  const keptRow = float * (inputs + expanded + output + tailColumns(o) + hidden + 2 * ffn) + FLOAT32 * sums;
  const forward = float * (ffn + tailColumns(down)) * tokens + forwardWork(down, float, tokens);
  const integers = eightBit ? integerWork(gateUp, float, tokens) : 0;
  const normed = gateUp.e4m3 ? float * (hidden + tailColumns(gateUp)) * tokens + normedWork(gateUp, float, tokens) : 0;
  const backDown = (float * ffn + FLOAT32 * sum(down.ranks)) * tokens + backwardWork(down, float, tokens);
  const backGate = (float * hidden + FLOAT32 * sum(gateUp.ranks)) * tokens + backwardWork(gateUp, float, tokens);
  const attention = (float * (output + backward) + gpu.backward + FLOAT32 * sums + FLOAT32 * sum(o.ranks)) * tokens;
  const throughO = float * output * tokens + FLOAT32 * sum(o.ranks) * tokens + backwardWork(o, float, tokens);
  const gone = float * (2 * ffn + hidden) * tokens;
  const workspace = Math.max(forward, integers, normed, backDown, backGate, Math.max(attention, throughO) - gone);
  return { kept: keptRow * tokens, workspace };
}

/** A block below everything that learns: nothing is kept, and little at a time. */
export function gpuForwardWork(
  { hidden }: ModelShape,
  { inputs, output, expanded, forward, gpu }: AttentionSizes,
  { gateUp, down }: BlockProducts,
  eightBit: boolean,
  float: number,
  tokens: number,
): number {
  const ffn = down.in;
  const attention = hidden + inputs + expanded + output + forward;
  const mlp = 2 * hidden + 3 * ffn;
  const integers = eightBit ? float * (hidden + 2 * ffn) * tokens + integerWork(gateUp, float, tokens) : 0;
  const codes = down.e4m3 ? e4m3Work(down, float, tokens) : 0;
  return Math.max((float * attention + gpu.forward) * tokens, float * mlp * tokens + codes, integers);
}

/** What the products of experts take beside their tensors: of one that every token chooses, or of all together. */
export function gpuExpertWork(
  products: readonly GpuProduct[],
  experts: ExpertsSpec | undefined,
  eightBit: boolean,
  float: number,
  tokens: number,
): number {
  if (experts === undefined) return 0;
  const each = products.map((product) =>
    Math.max(
      forwardWork(product, float, tokens),
      backwardWork(product, float, tokens),
      eightBit && product.quantized && !product.e4m3 ? integerWork(product, float, tokens) : 0,
      groupedWork(product, experts.count, float, tokens * experts.router.chosen),
    ),
  );
  return Math.max(0, ...each);
}

/**
 * CudaOps::experts_forward and its backward pass: in e4m3 all rows' codes and scales; all experts' A or B, and inner vectors, in the compute
 * dtype.
 */
function groupedWork(
  { in: input, out, ranks, e4m3 }: GpuProduct,
  experts: number,
  float: number,
  rows: number,
): number {
  const rank = sum(ranks);
  const widest = Math.max(input, out);
  const lora = rank === 0 ? 0 : float * (experts * rank * roundUp(widest, 64) + rows * roundUp(rank, 64));
  return lora + (e4m3 ? (widest + FLOAT32) * rows : 0);
}

/** LLM.int8()'s forward: the product's input, its codes and scales, and the sums in 32 bits (CudaOps::forward_int8). */
function integerWork(product: GpuProduct, float: number, tokens: number): number {
  const input = float * (product.in + tailColumns(product)) * tokens;
  const codes = (roundUp(product.in, 16) + FLOAT32) * tokens;
  const outlierLists = FLOAT32 * (2 * product.in + 1);
  return input + codes + outlierLists + FLOAT32 * roundUp(product.out, 4) * tokens;
}

/** LoRA's inner vectors, and then what a product in e4m3 takes. */
function forwardWork(product: GpuProduct, float: number, tokens: number): number {
  return Math.max(innerWork(product, float, tokens), product.e4m3 ? e4m3Work(product, float, tokens) : 0);
}

/** The input's codes and scales; before them, LoRA's part of the output (CudaOps::forward_fp8). */
function e4m3Work(product: GpuProduct, float: number, tokens: number): number {
  return Math.max((product.in + FLOAT32) * tokens, loraPartWork(product, float, tokens));
}

/** Behind a norm that writes codes and scales itself these are there first (CudaOps::norm_linear_forward). */
function normedWork(product: GpuProduct, float: number, tokens: number): number {
  return (product.in + FLOAT32) * tokens + loraPartWork(product, float, tokens);
}

/** Inner vectors and B in the compute dtype (CudaOps::write_output). */
function loraPartWork({ ranks, partRows }: GpuProduct, float: number, tokens: number): number {
  const widest = Math.max(0, ...partRows.filter((_, part) => ranks[part]! > 0));
  return float * (roundUp(sum(ranks), 64) * tokens + sum(ranks) * roundUp(widest, 64));
}

/** CudaOps::make_inner: partial sums, or what products of their own take. */
function innerWork(product: GpuProduct, float: number, tokens: number): number {
  if (!runsAsProducts(product)) return innerScratch(product, product.in, tokens);
  return float * (droppedRows(product, tokens) + sum(product.ranks)) * roundUp(product.in, 64);
}

/**
 * Workspace of LoRA's backward products through cuBLASLt (cuda_ops_lora.cpp). It holds the inner vectors or their gradients in the compute
 * dtype. Beside them, one at a time: B of all parts, each as wide as the widest; A of all parts and each part's input after dropout; or each
 * part's term of the input's gradient.
 */
function productsBackWork(product: GpuProduct, float: number, tokens: number): number {
  const { ranks, partRows, in: input } = product;
  const rounded = roundUp(sum(ranks), 64) * tokens;
  const b = sum(ranks) * roundUp(Math.max(...partRows.filter((_, part) => ranks[part]! > 0)), 64);
  const a = (sum(ranks) + droppedRows(product, tokens)) * roundUp(input, 64);
  return float * (rounded + Math.max(a, b));
}

/** Rows of the inputs that dropout leaves something of, one input for each part that learns. */
function droppedRows({ ranks, dropout }: GpuProduct, tokens: number): number {
  return dropout ? ranks.filter((rank) => rank > 0).length * tokens : 0;
}

/**
 * A product's backward pass (CudaOps::input_grad_product, lora_a_grad): its LoRA scratch, the gradient that LoRA's columns widen, or its codes
 * and scales in e4m3.
 */
function backwardWork(product: GpuProduct, float: number, tokens: number): number {
  const codes = product.e4m3 ? (product.out + FLOAT32) * tokens : 0;
  return Math.max(codes, loraBackWork(product, float, tokens));
}

function loraBackWork(product: GpuProduct, float: number, tokens: number): number {
  const { ranks, partRows, in: input, out, dropout, e4m3 } = product;
  if (sum(ranks) === 0) return 0;
  const wide = !dropout && !e4m3 && out < 2 * input ? float * roundUp(out + tailColumns(product), 64) * tokens : 0;
  if (runsAsProducts(product)) return Math.max(wide, productsBackWork(product, float, tokens));
  const ofPart = (part: number) => partRows[part]!;
  const single = float === FLOAT32;
  const aGrad = single
    ? plainOuterScratch(ranks, () => input, tokens)
    : outerScratch(ranks, () => input, false, tokens);
  const outputSide = single
    ? Math.max(innerScratch(product, out, tokens), plainOuterScratch(ranks, ofPart, tokens))
    : outerScratch(ranks, ofPart, true, tokens);
  return Math.max(wide, aGrad, outputSide);
}

/** Partial inner vectors, of 16 tokens and up to eight ranks a tile, over splits of the columns (lora/inner.cu). */
function innerScratch({ ranks }: GpuProduct, columns: number, tokens: number): number {
  const tiles = sum(ranks.map((rank) => Math.ceil(rank / 8)));
  const blocks = Math.ceil(tokens / 16);
  const splits = innerSplits(blocks, Math.max(1, Math.floor(columns / 512)));
  return splits === 1 ? 0 : splits * blocks * 16 * 8 * (tiles <= 4 ? tiles : 8) * FLOAT32;
}

/** lora/inner.cu's inner_splits. */
function innerSplits(blocks: number, most: number): number {
  const atOnce = 396;
  if (blocks <= atOnce) return Math.max(1, Math.min(Math.floor(atOnce / blocks), most));
  const even = [1, 2, 3, 4].find(
    (splits) => splits <= most && 10 * splits * blocks >= 9 * atOnce * Math.ceil((splits * blocks) / atOnce),
  );
  return even ?? 1;
}

/** In float32, partial gradients of A or B, of strips of columns and eight ranks, over splits of the tokens (lora/outer_plain.cu). */
function plainOuterScratch(ranks: readonly number[], columnsOf: (part: number) => number, tokens: number): number {
  const jobs = ranks.flatMap((rank, part) => repeated(Math.ceil(columnsOf(part) / 256), Math.ceil(rank / 8)));
  const bytes = launches(jobs).map((strips) => {
    const splits = Math.max(1, Math.min(Math.ceil(800 / strips), Math.floor(tokens / 128)));
    return splits * strips * 8 * 256 * FLOAT32;
  });
  return Math.max(0, ...bytes);
}

/** In 16 bits, the same over blocks of 256 columns and up to 16 ranks, and B's part of the inner vectors' gradients (lora/outer.cu's cut_of). */
function outerScratch(
  ranks: readonly number[],
  columnsOf: (part: number) => number,
  inner: boolean,
  tokens: number,
): number {
  const together = ranks.some((rank) => rank > 8) ? 16 : 8;
  const jobs = ranks.flatMap((rank, part) => repeated(Math.ceil(columnsOf(part) / 256), Math.ceil(rank / together)));
  const bytes = launches(jobs).map((blocks) => {
    const target = 2 * blocks > 528 ? 3 * 528 : 528;
    const wanted = Math.max(1, Math.min(Math.floor(target / blocks), Math.floor(tokens / 32)));
    const perSplit = roundUp(Math.ceil(tokens / wanted), 16);
    return blocks * together * (Math.ceil(tokens / perSplit) * 256 + (inner ? tokens : 0)) * FLOAT32;
  });
  return Math.max(0, ...bytes);
}

/** Blocks of each launch, which takes up to eight jobs. */
function launches(jobs: readonly number[]): number[] {
  const groups: number[] = [];
  for (let first = 0; first < jobs.length; first += 8) groups.push(sum(jobs.slice(first, first + 8)));
  return groups;
}

function repeated(value: number, times: number): number[] {
  return new Array<number>(times).fill(value);
}

/** The head's input widened by LoRA's inner vectors, of a chunk of label tokens (CudaOps::forward_product). */
export function gpuHeadWork(head: GpuProduct, float: number, chunk: number): number {
  if (sum(head.ranks) === 0) return 0;
  return float * roundUp(head.in + tailColumns(head), 64) * chunk + backwardWork(head, float, chunk);
}
