import { dtypeBytes } from "../../common/dtype.ts";
import { remembered } from "../../common/remembered.ts";
import { pairMatrices } from "../../models/kinds/lora.ts";
import { matrixElements, type NamedMatrix } from "../../models/kinds/named-matrix.ts";
import type { LoraTarget } from "../../models/lora-targets.ts";
import type { LayerSpec } from "../../models/spec.ts";
import type { PlanRequest } from "../request.ts";
import { allProducts, blockProducts, roundUp, sum } from "./gpu-products.ts";
import { LORA_BYTES_PER_PARAMETER, TOLD_BYTES_PER_PARAMETER } from "./held-sizes.ts";
import { logitRows } from "./logit-rows.ts";

const FLOAT32 = 4;
/** Rows of the embedding's table that DoRA reads at a time (native/model/embedding.cpp). */
const TABLE_ROWS = 512;
/** Rows of the identity that |W|² is measured with at a time (native/model/dora.cpp). */
const MEASURED_ROWS = 128;
/** Outputs of a weight in e4m3 that are made wider at a time for it (native/ops/cuda/cuda_ops_linear.cpp: forward_values). */
const WIDENED_ROWS = 1024;

type Trained = Pick<PlanRequest, "matrices" | "lora" | "beside">;

/** Everything that a run trains, of all adapters; without a list of it, the pairs' own. */
export const trainedMatrices: (of: Trained) => readonly NamedMatrix[] = remembered(
  ({ matrices, lora, beside = [] }) => {
    const own = matrices ?? lora.flatMap(pairMatrices);
    return beside.length === 0 ? own : [...own, ...beside.flatMap(trainedMatrices)];
  },
);

/** Index of the lowest layer that trains anything; Infinity when nothing learns. */
export function lowestTrainable(request: Trained & Pick<PlanRequest, "work">): number {
  if (request.work.forwardOnly === true) return Number.POSITIVE_INFINITY;
  return trainedMatrices(request).reduce((lowest, { layer }) => Math.min(lowest, layer), Number.POSITIVE_INFINITY);
}

/** Bytes of a layer's matrices with their gradients and moments. */
export function trainedBytes(request: PlanRequest, index: number): number {
  const own = trainedMatrices(request).filter(({ layer, twin }) => layer === index || twin?.layer === index);
  return matrixElements(own) * LORA_BYTES_PER_PARAMETER;
}

/** Bytes of what a layer's matrices are resumed with. */
export function toldBytes(request: PlanRequest, index: number): number {
  return (trainedBytes(request, index) / LORA_BYTES_PER_PARAMETER) * TOLD_BYTES_PER_PARAMETER;
}

/** Whether the embedding's table is what is trained: it then lies among what is trained, on the device. */
export function trainsTable(request: PlanRequest, { kind, name }: LayerSpec): boolean {
  return kind === "embedding" && trainedMatrices(request).some((matrix) => matrix.name === `${name}.weight`);
}

/** Whether the head's whole weight is trained: its products then have a copy of their own. */
export function trainsHead(request: PlanRequest, { kind, name }: LayerSpec): boolean {
  return kind === "head" && trainedMatrices(request).some((matrix) => matrix.name === `${name}.weight`);
}

/** What kinds beside plain pairs add to a layer's memory, as LayerMemory has it. */
export interface KindMemory {
  /** Held beside the weights: DoRA's norms. */
  readonly weights: number;
  /** Kept from forward to backward where everything is, and of a block that recomputes. */
  readonly kept: number;
  readonly workspace: number;
}

/**
 * DoRA keeps each product as it was before its gains (a N a token, N its outputs), works on one more and on its gradient, and measures norms
 * with some rows of float32 products. With dropout it keeps the products of dropped inputs instead, and works on such an input, its inner
 * vectors and their gradients. A pair on the embedding works on vectors of its rank, with DoRA also on some rows of the table. A head that has rows of
 * tokens in the embedding's stead holds them as products take them, and works on their logits.
 */
export function kindMemory(request: PlanRequest, layer: LayerSpec, pairs: readonly LoraTarget[]): KindMemory {
  const { work, computeDtype, spec, holding } = request;
  const float = dtypeBytes(computeDtype);
  if (layer.kind === "embedding") return embeddingMemory(request, pairs);
  const rows = trainedMatrices(request).find(({ twin }) => twin !== undefined && spec.layers[twin.layer] === layer);
  if (rows !== undefined) return rowsMemory(request, rows);
  const gains = pairs.filter(({ dora }) => dora);
  if (gains.length === 0) return NOTHING;
  const measuring = (input: number, out: number) => MEASURED_ROWS * (float * input + FLOAT32 * (out + MEASURED_ROWS));
  const dropped = Math.max(
    ...gains.map(({ r, in: input, dropout }) => (dropout > 0 ? droppedRow(float, input, r) : 0)),
  );
  if (layer.kind !== "block") {
    const { hidden, vocab } = spec.shape;
    const chunk = Math.min(work.labelTokens, logitRows(vocab)) * (vocab * (FLOAT32 + float) + dropped);
    return { weights: 4 * FLOAT32 * vocab, kept: 0, workspace: Math.max(chunk, measuring(hidden, vocab)) };
  }
  const names = new Set(gains.map(({ name }) => name));
  const products = allProducts(blockProducts(layer, gains, holding)).filter(({ ranks }) =>
    ranks.some((rank) => rank > 0),
  );
  const others = layer.linears.filter(({ name, role }) => names.has(name) && role === "shared_gate");
  const outs = [...products.map(({ out }) => out), ...others.map(({ out }) => out)];
  const kept = float * sum(outs) * work.tokens;
  return {
    weights: 4 * FLOAT32 * sum(outs),
    kept,
    workspace:
      (2 * float * Math.max(...outs) + dropped) * work.tokens +
      Math.max(
        ...products.map(
          ({ in: input, out, e4m3 }) =>
            measuring(input, out) + (e4m3 ? float * Math.min(WIDENED_ROWS, out) * input : 0),
        ),
        0,
      ),
  };
}

function embeddingMemory({ work, computeDtype, spec }: PlanRequest, pairs: readonly LoraTarget[]): KindMemory {
  const { hidden, vocab } = spec.shape;
  const ranks = sum(pairs.map(({ r }) => r));
  const vectors = work.tokens * FLOAT32 * (2 * ranks + 4);
  if (!pairs.some(({ dora }) => dora)) return { weights: 0, kept: 0, workspace: vectors };
  const measuring = FLOAT32 * ((Math.min(TABLE_ROWS, vocab) + ranks) * hidden + ranks ** 2);
  const gains = 2 * dtypeBytes(computeDtype) * hidden * work.tokens;
  return { weights: 4 * FLOAT32 * hidden, kept: 0, workspace: Math.max(measuring, vectors + gains) };
}

function rowsMemory({ work, computeDtype, spec }: PlanRequest, { shape }: NamedMatrix): KindMemory {
  const float = dtypeBytes(computeDtype);
  const [tokens, hidden] = shape as [number, number];
  const chunk = Math.min(work.labelTokens, logitRows(spec.shape.vocab));
  const logits = roundUp(tokens, 8);
  return {
    weights: float * tokens * hidden,
    kept: 0,
    workspace: chunk * Math.max(FLOAT32 * logits, float * (logits + hidden)),
  };
}

/** Bytes a token of a pair's input after dropout, with room for LoRA's columns, of its inner vectors and of their gradient. */
const droppedRow = (float: number, input: number, rank: number) =>
  float * (input + roundUp(rank, 64)) + 2 * FLOAT32 * rank;

const NOTHING: KindMemory = { weights: 0, kept: 0, workspace: 0 };
