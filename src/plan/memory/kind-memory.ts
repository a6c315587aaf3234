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
/** Rows of the embedding's table that DoRA reads at once (native/model/embedding.cpp). */
const TABLE_ROWS = 512;
/** Rows of the identity matrix that are multiplied at once to measure |W|² (native/model/dora.cpp). */
const MEASURED_ROWS = 128;
/** Outputs of an e4m3 weight that are widened at once for that (native/ops/cuda/cuda_ops_linear.cpp: forward_values). */
const WIDENED_ROWS = 1024;

type Trained = Pick<PlanRequest, "matrices" | "lora" | "beside">;

/** All matrices that a run trains, of all adapters. Without a list of them: those of the pairs. */
export const trainedMatrices: (of: Trained) => readonly NamedMatrix[] = remembered(
  ({ matrices, lora, beside = [] }) => {
    const own = matrices ?? lora.flatMap(pairMatrices);
    return beside.length === 0 ? own : [...own, ...beside.flatMap(trainedMatrices)];
  },
);

/** Index of the lowest layer with anything trained; Infinity if there is none. */
export function lowestTrainable(request: Trained & Pick<PlanRequest, "work">): number {
  if (request.work.forwardOnly === true) return Number.POSITIVE_INFINITY;
  return trainedMatrices(request).reduce((lowest, { layer }) => Math.min(lowest, layer), Number.POSITIVE_INFINITY);
}

/** Bytes of a layer's trained matrices with their gradients and moments. */
export function trainedBytes(request: PlanRequest, index: number): number {
  const own = trainedMatrices(request).filter(({ layer, twin }) => layer === index || twin?.layer === index);
  return matrixElements(own) * LORA_BYTES_PER_PARAMETER;
}

/** Bytes of a layer's trained matrices and moments: what training resumes from. */
export function toldBytes(request: PlanRequest, index: number): number {
  return (trainedBytes(request, index) / LORA_BYTES_PER_PARAMETER) * TOLD_BYTES_PER_PARAMETER;
}

/** Whether the embedding's whole table is trained. If so it lies on the device with the other trained matrices. */
export function trainsTable(request: PlanRequest, { kind, name }: LayerSpec): boolean {
  return kind === "embedding" && trainedMatrices(request).some((matrix) => matrix.name === `${name}.weight`);
}

/** Whether the head's whole weight is trained. If so its products have a copy of their own. */
export function trainsHead(request: PlanRequest, { kind, name }: LayerSpec): boolean {
  return kind === "head" && trainedMatrices(request).some((matrix) => matrix.name === `${name}.weight`);
}

/** What kinds of adapters other than plain LoRA pairs add to a layer's LayerMemory. */
export interface KindMemory {
  /** Held for the whole run: DoRA's norms. */
  readonly weights: number;
  /** Kept for the backward pass: by a block that keeps everything, and by one that recomputes. */
  readonly kept: number;
  readonly workspace: number;
}

/**
 * DoRA keeps each product before its gains: a N bytes a token for N outputs. Its workspace is one more product, its gradient, and the rows of
 * float32 products that measure norms. With dropout it keeps the products of dropped inputs instead, and the workspace has a dropped input,
 * its inner vectors and their gradients. A pair on the embedding needs vectors of its rank, with DoRA also some rows of the table. A tied
 * head with trained rows of tokens holds a copy of these rows for its products, and needs their logits.
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

/** Bytes a token of a pair's dropped input with LoRA's columns, of its inner vectors and of their gradient. */
const droppedRow = (float: number, input: number, rank: number) =>
  float * (input + roundUp(rank, 64)) + 2 * FLOAT32 * rank;

const NOTHING: KindMemory = { weights: 0, kept: 0, workspace: 0 };
