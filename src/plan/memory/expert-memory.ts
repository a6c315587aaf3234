import { dtypeBytes, type FloatDtype } from "../../common/dtype.ts";
import { MX_BLOCK } from "../../common/quantization.ts";
import { expertLinears } from "../../models/experts.ts";
import type { LoraTarget } from "../../models/lora-targets.ts";
import type { BlockLayer, ExpertsSpec, LinearSpec } from "../../models/spec.ts";
import { type GpuProduct, suitsE4m3, sum } from "./gpu-products.ts";
import { type Holding, isQuantized, linearWeightBytes } from "./held-sizes.ts";

const FLOAT32 = 4;

/** Bytes of the weights of a block's experts, their router, biases and correction; 0 without experts. */
export function expertWeightBytes(block: BlockLayer, holding: Holding, computeDtype: FloatDtype): number {
  const { experts } = block;
  if (experts === undefined) return 0;
  const { router, count } = experts;
  const rest = (linear: LinearSpec) => (linear.bias ? linear.out * FLOAT32 : 0);
  const routed = router.linear.in * router.linear.out * dtypeBytes(computeDtype) + rest(router.linear);
  const corrected = router.correction === null ? 0 : count * FLOAT32;
  const weight = (linear: LinearSpec) =>
    experts.packed === null ? linearWeightBytes(linear, holding, computeDtype) : mxWeightBytes(linear);
  const all =
    holding.skipModules.length === 0 ? count * sum(experts.linears.map(weight)) : sum(expertLinears(block).map(weight));
  return routed + corrected + all + count * sum(experts.linears.map(rest));
}

/** MXFP4 with its scales widened to float32. */
function mxWeightBytes(linear: LinearSpec): number {
  const elements = linear.in * linear.out;
  return elements / 2 + (elements / MX_BLOCK) * FLOAT32;
}

/** Elements of the experts' weights that are kept in the compute dtype too by a weight cache. */
export function expandedExpertElements({ experts }: BlockLayer, holding: Holding): number {
  if (experts === undefined || !packsExperts(experts, holding)) return 0;
  return experts.count * sum(experts.linears.map((linear) => linear.in * linear.out));
}

function packsExperts(experts: ExpertsSpec, holding: Holding): boolean {
  return experts.packed !== null || experts.linears.some((linear) => isQuantized(linear, holding));
}

/** Gate and up, and down, of one expert as products; `pairs`: the block's. */
export function expertProducts({ experts }: BlockLayer, pairs: readonly LoraTarget[], holding: Holding): GpuProduct[] {
  if (experts === undefined) return [];
  return [false, true].map((last): GpuProduct => {
    const linears = experts.linears.filter(({ role }) => (role === "down") === last);
    const leaf = last ? "down_proj" : "gate_up_proj";
    const pair = pairs.find(({ stack }) => stack?.parameter === `${experts.name}.${leaf}`);
    const out = sum(linears.map((linear) => linear.out));
    return {
      in: linears[0]!.in,
      out,
      partRows: linears.map((linear) => linear.out),
      ranks: pair === undefined ? linears.map(() => 0) : [pair.r / experts.count],
      dropout: false,
      bias: !last && linears.some(({ bias }) => bias),
      quantized: packsExperts(experts, holding),
      ...(experts.packed === null ? {} : { packed: experts.packed }),
      e4m3: holding.fp8 && linears.every(suitsE4m3),
    };
  });
}

/** Most bytes of expanded experts in one weight: experts_of_a_weight in native/ops/cuda/kernel_choice.cpp. */
const EXPERTS_OF_A_WEIGHT_BYTES = 512 * 2 ** 20;

/** A weight of several experts, one below the other, as a GPU holds them, and how many such there are. */
export interface ExpertWeights {
  readonly product: GpuProduct;
  readonly count: number;
}

/** `product`: one expert's. */
export function expertWeights(product: GpuProduct, experts: number, computeDtype: FloatDtype): ExpertWeights {
  const bytes = product.in * product.out * dtypeBytes(computeDtype);
  let together = Math.min(experts, Math.max(1, Math.floor(EXPERTS_OF_A_WEIGHT_BYTES / bytes)));
  while (experts % together !== 0) together -= 1;
  const partRows = Array.from({ length: together }, () => product.partRows).flat();
  return {
    product: { ...product, out: product.out * together, partRows, matrices: together },
    count: experts / together,
  };
}

/** Bytes a token of a mixture of experts, native/model/experts.cpp's; C experts chosen of N, F wide each. */
export interface ExpertWork {
  /** Beside a shared expert's: logits, choices (16 C), gate and up of the chosen (2 a C F), and LoRA's inner vectors of theirs. */
  readonly kept: number;
  /** On the backward pass: the output's gradient, h and its gradient (3 a D), and rows by expert with what they come from (a C (F + D)). */
  readonly workspace: number;
  /** A block below everything that learns. */
  readonly forward: number;
}

export function expertWork(
  block: BlockLayer,
  products: readonly GpuProduct[],
  hidden: number,
  float: number,
): ExpertWork {
  const { experts, linears } = block;
  if (experts === undefined) return { kept: 0, workspace: 0, forward: 0 };
  const { chosen } = experts.router;
  const [gateUp, down] = products;
  const ffn = down!.in;
  const share = linears.some(({ role }) => role === "shared_gate") ? FLOAT32 : 0;
  const shared = linears.find(({ role }) => role === "down")?.in ?? 0;
  const choices = FLOAT32 * (experts.count + 4 * chosen) + share;
  const ranks = FLOAT32 * chosen * (sum(gateUp!.ranks) + 2 * sum(down!.ranks));
  const rows = chosen * (ffn + hidden);
  return {
    kept: choices + float * chosen * gateUp!.out + FLOAT32 * chosen * sum(gateUp!.ranks),
    // The shared expert's backward pass comes first; its gate and up are gone when the others' begins.
    workspace:
      float * (3 * hidden + Math.max(shared, hidden, rows - 2 * shared, hidden + experts.count)) +
      FLOAT32 * chosen +
      ranks +
      share,
    forward:
      choices + float * (2 * hidden + Math.max(rows, chosen * (gateUp!.out + hidden), 3 * chosen * ffn) + 3 * shared),
  };
}
