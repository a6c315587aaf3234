import { dtypeBytes, type FloatDtype } from "../../common/dtype.ts";
import type { LoraTarget } from "../../models/lora-targets.ts";
import type { BlockLayer, DeltaNet } from "../../models/spec.ts";
import type { Device } from "../devices.ts";
import { attentionSizes } from "../memory/attention-sizes.ts";
import { expertProducts } from "../memory/expert-memory.ts";
import {
  allProducts,
  blockProducts,
  type GpuProduct,
  headProduct,
  runsAsProducts,
  sum,
  tailColumns,
} from "../memory/gpu-products.ts";
import { isExpanded } from "../memory/gpu-weights.ts";
import { lowestTrainable } from "../memory/kind-memory.ts";
import { pairsByLayer } from "../memory/layer-memory.ts";
import type { PlanRequest } from "../request.ts";
import { GPU } from "./gpu-coefficients.ts";
import { droppedProducts, type LayerWork, tokensSeen } from "./layer-work.ts";
import { deviceRate, memoryRate } from "./rates.ts";

/**
 * Seconds of every layer for one micro-batch on a GPU, T tokens of it: a sum of what each kernel computes or moves, at the rates
 * of its kind (gpu-coefficients.ts).
 *
 * - products, 2 T in out a pass, forward with LoRA's inner vectors as further columns of the input;
 * - LoRA's own: inner vectors forward, 2 T r in; back the inner vectors' gradients, those of A and B, and the part of the input's, 4 T r (in + out);
 * - causal attention over rows of n tokens, 2 T n H E forward, 2.5 times that back;
 * - bytes: quantised weights expanded once a pass, what norms, rotary and SwiGLU read and write, LoRA's reads of the input and the
 *   gradient, q, k, v and their gradients through attention;
 * - the head's two products over the label tokens, and its logits.
 *
 * A block that recomputes goes through its forward pass again but for the last product, which nothing on the backward pass needs.
 */
export function gpuLayerTimes(request: PlanRequest, device: Device): LayerWork[] {
  const { spec, lora } = request;
  const pairs = pairsByLayer(lora, spec.layers.length);
  const lowest = lowestTrainable(request);
  return spec.layers.map((layer, index): LayerWork => {
    if (layer.kind === "block") return blockTime(request, device, layer, pairs[index]!, index >= lowest);
    if (layer.kind === "head") return headTime(request, device, pairs[index]![0] ?? null);
    return NO_TIME;
  });
}

const NO_TIME: LayerWork = { forward: 0, backward: 0, recompute: 0, expansion: 0 };

function blockTime(
  request: PlanRequest,
  device: Device,
  block: BlockLayer,
  pairs: readonly LoraTarget[],
  learns: boolean,
): LayerWork {
  const { work, holding, computeDtype } = request;
  const tokens = work.meanTokens;
  const own = blockProducts(block, pairs, holding);
  const products = allProducts(own);
  const rate = deviceRate(device, computeDtype, tokens);
  const expansion = sum(
    products
      .filter((product) => isExpanded(product, holding, computeDtype))
      .map((product) => expansionBytes(request, product) / bytesRate(device)),
  );
  const attention = attentionTime(request, device, block);
  const rateOf = ({ e4m3 }: GpuProduct) => (e4m3 ? GPU.e4m3Factor * rate : rate);
  const forwardOf = (product: GpuProduct) =>
    (2 * tokens * (product.in + (product.e4m3 ? 0 : tailColumns(product))) * product.out) / rateOf(product) +
    e4m3Time(request, device, product, "forward") +
    loraTime(request, device, product, "forward");
  const backwardOf = (product: GpuProduct) =>
    (2 * tokens * product.in * product.out) / rateOf(product) +
    e4m3Time(request, device, product, "backward") +
    loraTime(request, device, product, "backward");
  const moved = elementwiseBytes(
    request,
    block,
    own.down.in + chosenExperts(block) * (block.experts?.linears.at(-1)?.in ?? 0),
  );
  const experts = expertTime(request, device, block, pairs);
  const rest = (bytes: number) => (tokens * bytes) / bytesRate(device) + GPU.blockPass;
  const again = (tokens * droppedProducts(pairs)) / rate;
  const forward = sum(products.map(forwardOf)) + attention.forward + rest(moved.forward) + experts.forward + again;
  if (!learns) return { forward, backward: 0, recompute: 0, expansion: expansion + experts.expansion };
  return {
    forward,
    backward: sum(products.map(backwardOf)) + attention.backward + rest(moved.backward) + experts.backward + again,
    recompute: forward - forwardOf(own.down) - experts.last,
    expansion: expansion + experts.expansion,
  };
}

const chosenExperts = ({ experts }: BlockLayer) => experts?.router.chosen ?? 0;

/**
 * Experts' products: all in one launch where the engine does so (experts_choice in native/ops/cuda/kernel_choice.cpp), else one after the
 * other at the rate of products of an expert's rows. Their weights are expanded once a pass where they are held otherwise.
 */
function expertTime(
  request: PlanRequest,
  device: Device,
  block: BlockLayer,
  pairs: readonly LoraTarget[],
): { readonly forward: number; readonly backward: number; readonly last: number; readonly expansion: number } {
  const { experts } = block;
  if (experts === undefined) return { forward: 0, backward: 0, last: 0, expansion: 0 };
  const { work, holding, computeDtype, spec } = request;
  const { count, router } = experts;
  const products = expertProducts(block, pairs, holding);
  const rows = work.meanTokens * router.chosen;
  const of = (product: GpuProduct, way: "forward" | "backward") =>
    expertProductTime(device, computeDtype, product, count, rows) +
    rowsToE4m3(product, way, dtypeBytes(computeDtype), rows) / bytesRate(device);
  const routed = (2 * work.meanTokens * spec.shape.hidden * count) / deviceRate(device, computeDtype, work.meanTokens);
  // Rows by expert and their sums: written once and read twice.
  const moved = (3 * rows * spec.shape.hidden * dtypeBytes(computeDtype)) / bytesRate(device);
  const expanded = products.filter((product) => isExpanded(product, holding, computeDtype));
  return {
    forward: sum(products.map((product) => of(product, "forward"))) + routed + moved,
    backward: sum(products.map((product) => of(product, "backward"))) + routed + moved,
    last: of(products.at(-1)!, "forward"),
    expansion: (count * sum(expanded.map((product) => expansionBytes(request, product)))) / bytesRate(device),
  };
}

function expertProductTime(
  device: Device,
  dtype: FloatDtype,
  { in: input, out, e4m3 }: GpuProduct,
  count: number,
  rows: number,
): number {
  const own = rows / count;
  const factor = e4m3 ? GPU.e4m3Factor : 1;
  const [major] = device.capability ?? [];
  const together = major === 9 && dtype !== "float32" && input % 8 === 0 && out % 8 === 0;
  if (!together)
    return (2 * rows * input * out) / (factor * deviceRate(device, dtype, own)) + count * GPU.expertProduct;
  const rate = (factor * GPU.expertsShare * deviceRate(device, dtype, rows) * own) / (own + GPU.expertsHalfRows);
  return (2 * rows * input * out) / rate;
}

/** Of one pass over the product's weight: codes and scales are read, values of the compute dtype or e4m3 written. */
function expansionBytes(
  { holding, computeDtype }: PlanRequest,
  { in: input, out, quantized, e4m3 }: GpuProduct,
): number {
  const { method } = holding.quantization;
  const held = quantized ? (method === "4bit" ? 0.5 : 1) : dtypeBytes(holding.dtype);
  return input * out * (held + (e4m3 ? 1 : dtypeBytes(computeDtype)));
}

/**
 * What a product in e4m3 moves beside its operands: its input, or the output's gradient, read in 16 bits and written in 8; forward LoRA's
 * part of the output too, written and read.
 */
function e4m3Time(
  { work, computeDtype }: PlanRequest,
  device: Device,
  product: GpuProduct,
  pass: "forward" | "backward",
): number {
  const { e4m3, out, ranks } = product;
  if (!e4m3) return 0;
  const float = dtypeBytes(computeDtype);
  const lora = pass === "forward" && sum(ranks) > 0 ? 2 * float * out : 0;
  return (rowsToE4m3(product, pass, float, work.meanTokens) + work.meanTokens * lora) / bytesRate(device);
}

/** Bytes that the pass over a product's input moves, or over its output's gradient. */
function rowsToE4m3({ e4m3, in: input, out }: GpuProduct, way: "forward" | "backward", float: number, rows: number) {
  return e4m3 ? rows * (float + 1) * (way === "forward" ? input : out) : 0;
}

function loraTime(
  { work, computeDtype }: PlanRequest,
  device: Device,
  product: GpuProduct,
  pass: "forward" | "backward",
): number {
  const { in: input, out, partRows, ranks } = product;
  const total = sum(ranks);
  if (total === 0) return 0;
  const tokens = work.meanTokens;
  const asProducts = runsAsProducts(product);
  const fused = product.dropout ? GPU.loraShare : GPU.loraUnmaskedShare;
  const rate = (asProducts ? GPU.loraProductsShare : fused) * deviceRate(device, computeDtype, tokens);
  const weighed = ranks.map((rank) =>
    asProducts ? rank : Math.min(rank, 8) + GPU.loraRounded * Math.max(0, rank - 8),
  );
  const outputs = sum(weighed.map((rank, part) => rank * partRows[part]!));
  const flop = pass === "forward" ? 2 * sum(weighed) * input : 4 * (sum(weighed) * input + outputs);
  const values = asProducts ? productsValues(product, pass) : pass === "forward" ? input : input + out;
  const bytes = dtypeBytes(computeDtype) * values;
  return tokens * (flop / rate + bytes / bytesRate(device));
}

/**
 * A token's values that LoRA's products through cuBLASLt move: forward what dropout leaves of the input, made and read for each
 * pair; back the same for A, the output's gradient twice, and the part of the input's gradient, made, read and added.
 */
function productsValues({ in: input, out, ranks, dropout }: GpuProduct, pass: "forward" | "backward"): number {
  const pairs = ranks.filter((rank) => rank > 0).length;
  if (!dropout) return pass === "forward" ? input : 3 * input + 2 * out;
  return pass === "forward" ? 3 * pairs * input : 7 * pairs * input + 2 * out;
}

function attentionTime(
  { spec, work, computeDtype }: PlanRequest,
  device: Device,
  block: BlockLayer,
): { readonly forward: number; readonly backward: number } {
  const { heads, kvHeads, headDim } = spec.shape;
  const { attention } = block;
  const tokens = work.meanTokens;
  if (attention.kind === "delta") {
    const { forward, backward } = deltaTime(attention, work);
    return { forward, backward };
  }
  const seen = tokensSeen(spec, block, work.rowTokens);
  // A row of n tokens runs at n / (n + half) of the rate: as long as one of n + half at all of it.
  const widths = attention.kind === "latent" ? headDim + attention.value : 2 * headDim;
  const flop = tokens * (seen + GPU.attentionHalfRow) * heads * widths;
  const rate = deviceRate(device, computeDtype, tokens);
  // q, k, v and the output; back those again with the output's gradient, and theirs.
  const columns = attention.kind === "latent" ? 2 * heads * widths : (2 * heads + 2 * kvHeads) * headDim;
  const bytes = tokens * dtypeBytes(computeDtype) * columns;
  return {
    forward: flop / (GPU.attentionForwardShare * rate) + bytes / bytesRate(device),
    backward: (2.5 * flop) / (GPU.attentionBackwardShare * rate) + (2 * bytes) / bytesRate(device),
  };
}

/**
 * Seconds of a gated delta rule (native/ops/cuda/delta): a row's tokens come one after the other, and a card runs so many states at a time; back a
 * row's chunks come one after the other, a block each value head.
 */
function deltaTime(
  { keyDim, valueHeads, valueDim }: DeltaNet,
  { meanTokens, rowTokens }: PlanRequest["work"],
): { readonly forward: number; readonly backward: number } {
  const heads = (valueHeads * meanTokens) / rowTokens;
  const state = (keyDim * valueDim) / 128 ** 2;
  const turns = (atOnce: number) => Math.max(1, (heads * state) / atOnce);
  return {
    forward: rowTokens * GPU.deltaToken * turns(GPU.deltaHeads),
    backward: rowTokens * (GPU.deltaToken * turns(GPU.deltaHeads) + GPU.deltaTokenBack * turns(GPU.deltaHeadsBack)),
  };
}

/**
 * A token's values that kernels between the products read and write. Forward: two norms (2 D, and 4 D with the residual), the sum
 * behind down (2 D), q and k turned in place, SwiGLU (3 F). Back: the norms' gradients with the residual's (12 D), SwiGLU's (6 F).
 */
function elementwiseBytes(
  { spec, computeDtype }: PlanRequest,
  block: BlockLayer,
  ffn: number,
): { readonly forward: number; readonly backward: number } {
  const { hidden, heads, kvHeads, headDim } = spec.shape;
  const float = dtypeBytes(computeDtype);
  const plain = block.attention.kind === "softmax" && !block.attention.gated;
  // Convolutions, gates, latent vectors' norms and heads put together read and write about what they work on twice.
  const { inputs, output, arranged, expanded } = attentionSizes(spec, block, float);
  const own = plain ? 0 : 2 * (inputs + output + arranged + expanded);
  return {
    forward: float * (8 * hidden + 2 * (heads + kvHeads) * headDim + 3 * ffn + own),
    backward: float * (12 * hidden + 6 * ffn + 2 * own),
  };
}

function headTime(request: PlanRequest, device: Device, pair: LoraTarget | null): LayerWork {
  const { spec, work, computeDtype, lora } = request;
  const { hidden, vocab } = spec.shape;
  const labels = work.meanLabelTokens;
  if (labels === 0) return NO_TIME;
  const product = headProduct(hidden, vocab, pair);
  // Its products run in chunks of label tokens, of some hundred rows and more.
  const pass = (2 * labels * hidden * vocab) / deviceRate(device, computeDtype, Math.max(labels, 512));
  const logits = (labels * vocab * GPU.logitBytes) / 2 / bytesRate(device);
  const again = pair === null ? 0 : (pass * droppedProducts([pair])) / (2 * hidden * vocab);
  const of = (way: "forward" | "backward") =>
    (loraTime(request, device, product, way) * labels) / work.meanTokens + again;
  return {
    forward: pass + logits + of("forward"),
    backward: lora.length > 0 ? pass + logits + of("backward") : 0,
    recompute: 0,
    expansion: 0,
  };
}

/** Seconds of the gradient norm and the update of pairs that hold so many parameters, once a step. */
export function gpuUpdateTime(device: Device, parameters: number): number {
  return (parameters * GPU.updateBytes) / bytesRate(device);
}

function bytesRate(device: Device): number {
  return GPU.memoryShare * memoryRate(device);
}
