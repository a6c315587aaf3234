import { dtypeBytes, type FloatDtype } from "../../common/dtype.ts";
import { remembered } from "../../common/remembered.ts";
import type { LoraTarget } from "../../models/lora-targets.ts";
import type { BlockLayer, LayerSpec, LinearSpec, ModelShape, ModelSpec } from "../../models/spec.ts";
import type { Device } from "../devices.ts";
import { roundedBytesPerToken } from "../link-bytes.ts";
import { eachAdapter, type PlanRequest } from "../request.ts";
import { type AttentionSizes, attentionSizes } from "./attention-sizes.ts";
import {
  type ExpertWeights,
  expandedExpertElements,
  expertProducts,
  expertWeightBytes,
  expertWeights,
  expertWork,
} from "./expert-memory.ts";
import { allProducts, blockProducts, type GpuProduct, headProduct, roundUp, sum } from "./gpu-products.ts";
import { expandedBytes, expansionBytes, heldAllocations, pagePadding } from "./gpu-weights.ts";
import { gpuBlockWork, gpuExpertWork, gpuForwardWork, gpuHeadWork } from "./gpu-work.ts";
import { type Holding, isQuantized, LORA_BYTES_PER_PARAMETER, layerWeightBytes } from "./held-sizes.ts";
import { kindMemory, lowestTrainable, toldBytes, trainedBytes, trainsHead, trainsTable } from "./kind-memory.ts";
import { logitRows } from "./logit-rows.ts";

/** Bytes that one layer needs on its device. */
export interface LayerMemory {
  readonly weights: number;
  /** In the host's memory, if the device has its own: the embedding. */
  readonly host: number;
  /** LoRA weights, gradients and optimizer state. */
  readonly lora: number;
  /** What a weight cache adds: copies of quantised weights in the compute dtype. */
  readonly expanded: number;
  /** On a GPU, room to expand its weights before a product, unless they are cached. The blocks of a device share it. */
  readonly expansion: number;
  /** On a GPU, what the driver adds by rounding allocations up, and a head's copy where its held dtype is not that of products. */
  readonly extra: number;
  /** Kept for the backward pass by a micro-batch in flight: by a block that recomputes, and by one that keeps everything. */
  readonly saved: number;
  readonly savedFull: number;
  /** A block's input, part of both of the above. It may be offloaded, as may everything that savedFull adds. */
  readonly input: number;
  /** Used while the layer runs. A device needs the largest of its layers'. */
  readonly workspace: number;
  /** What a block that recomputes adds to `workspace`. */
  readonly recompute: number;
  readonly cache: number;
}

const FLOAT32 = 4;
/** The driver's context, cuBLASLt's workspace and small tables. A CPU worker's budget does not include Node itself. */
const CONTEXT_BYTES = { cpu: 0, cuda: 640 * 2 ** 20 } as const;

export function contextBytes(kind: Device["kind"]): number {
  return CONTEXT_BYTES[kind];
}

/**
 * What every layer needs, in model order. Names: T tokens of a micro-batch, N label tokens, D hidden size, H heads, K key/value heads, E head
 * width, F feed-forward width, V vocabulary, R sum of a block's LoRA ranks, a bytes of the compute dtype. Bytes a token:
 *
 * - a block saves its input (a D) and LoRA's inner vectors (4 R). Without checkpointing it also saves q, k, v (a (H + 2K) E), attention's
 *   output (a H E) and log-sum-exp (4 H), or what another kind of attention has (attention-sizes.ts), the residual after attention (a D),
 *   gate and up (2 a F);
 * - a block's workspace is the gradient of its output and SwiGLU's activation (a (D + F)) with the gradients of LoRA's inner vectors (4 R), or
 *   that of attention's backward pass if it is larger. A block that recomputes adds everything it would otherwise save. Weights in 8 bits add
 *   codes of the input (codesWork);
 * - a block below everything that is trained saves nothing, and its workspace is a (2 D + 3 F);
 * - the final norm saves its input (a D), the head the gradient of its input (a D a label token);
 * - the head's workspace is its input or the input's gradient (a D), and a chunk of n label tokens with 4 n V <= 2^28: the input of the chunk
 *   (a D), and its logits in float32, which their gradient overwrites.
 *
 * GPUs lay products out differently: the formulas are in gpu-weights.ts and gpu-work.ts.
 *
 * Several adapters share the base and run one after another. Base weights are held once, trained matrices add up, and of everything else the
 * largest counts.
 */
export const layerMemory = remembered((request: PlanRequest): readonly LayerMemory[] => {
  const lowest = lowestTrainable(request);
  const [first, ...others] = eachAdapter(request).map((one) => adapterLayers(one, lowest));
  if (others.length === 0) return first!.map(({ cost }) => cost);
  const bare = adapterLayers({ ...request, lora: [], matrices: [], beside: [] }, lowest);
  return first!.map((_, index) =>
    together(
      [first!, ...others].map((layers) => layers[index]!),
      bare[index]!,
    ),
  );
});

interface AdapterLayer {
  readonly cost: LayerMemory;
  /** Whether the adapter trains the layer's whole weight, and so does not use the base's. */
  readonly ownWeight: boolean;
}

/** Adds up one layer over several adapters. `bare`: the layer without an adapter. */
function together(all: readonly AdapterLayer[], bare: AdapterLayer): LayerMemory {
  const most = (of: (cost: LayerMemory) => number) => Math.max(...all.map(({ cost }) => of(cost)));
  const beyond = (of: (cost: LayerMemory) => number) =>
    of(bare.cost) + sum(all.map(({ cost }) => Math.max(0, of(cost) - of(bare.cost))));
  const shared = all.every(({ ownWeight }) => ownWeight) ? 0 : bare.cost.weights;
  return {
    weights:
      shared + sum(all.map(({ cost, ownWeight }) => (ownWeight ? cost.weights : cost.weights - bare.cost.weights))),
    host: most(({ host }) => host),
    lora: sum(all.map(({ cost }) => cost.lora)),
    expanded: most(({ expanded }) => expanded),
    expansion: most(({ expansion }) => expansion),
    extra: beyond(({ extra }) => extra),
    saved: most(({ saved }) => saved),
    savedFull: most(({ savedFull }) => savedFull),
    input: most(({ input }) => input),
    workspace: most(({ workspace }) => workspace),
    recompute: most(({ recompute }) => recompute),
    cache: most(({ cache }) => cache),
  };
}

/** All layers with one adapter. `lowest`: the lowest layer that any adapter trains. */
function adapterLayers(request: PlanRequest, lowest: number): AdapterLayer[] {
  const { spec, lora } = request;
  const pairs = pairsByLayer(lora, spec.layers.length);
  const gpu = onGpu(request);
  return spec.layers.map((layer, index) => {
    const own = pairs[index]!;
    const kinds = kindMemory(request, layer, own);
    const table = trainsTable(request, layer);
    const held = gpu ? heldOnGpu(request, layer, own) : heldOnCpu(request, layer);
    const moving = { ...NOTHING, ...transient(request, layer, own, index >= lowest) };
    const cost = {
      ...held,
      weights: table ? 0 : held.weights + kinds.weights,
      host: table ? 0 : held.host,
      lora: trainedBytes(request, index),
      // On GPUs the copies lie in the host's memory.
      extra: held.extra + (request.tellsState === true && !gpu ? toldBytes(request, index) : 0),
      ...moving,
      savedFull: moving.savedFull + kinds.kept,
      workspace: moving.workspace + kinds.workspace,
      recompute: moving.recompute + kinds.kept,
    };
    return { cost, ownWeight: table || trainsHead(request, layer) };
  });
}

const NOTHING = { saved: 0, savedFull: 0, input: 0, workspace: 0, recompute: 0, cache: 0 } as const;

/** The devices of a run usually have one kind. Mixed devices are planned as if all were GPUs. */
function onGpu({ devices }: Pick<PlanRequest, "devices">): boolean {
  return devices.some(({ kind }) => kind === "cuda");
}

type Held = Pick<LayerMemory, "weights" | "host" | "expanded" | "expansion" | "extra">;

function heldOnCpu({ spec, holding, computeDtype }: PlanRequest, layer: LayerSpec): Held {
  const linears = layer.kind === "block" ? layer.linears.filter((linear) => isQuantized(linear, holding)) : [];
  const experts = layer.kind === "block" ? expertWeightBytes(layer, holding, computeDtype) : 0;
  const expandedExperts = layer.kind === "block" ? expandedExpertElements(layer, holding) : 0;
  return {
    weights: layerWeightBytes(spec, layer, holding, computeDtype) + experts,
    host: 0,
    expanded: dtypeBytes(computeDtype) * (sum(linears.map((linear) => linear.in * linear.out)) + expandedExperts),
    expansion: 0,
    extra: 0,
  };
}

function heldOnGpu({ spec, holding, computeDtype }: PlanRequest, layer: LayerSpec, pairs: readonly LoraTarget[]): Held {
  if (layer.kind === "embedding" || layer.kind === "norm") {
    const bytes = layerWeightBytes(spec, layer, holding, computeDtype);
    const nothing = { expanded: 0, expansion: 0 };
    // A step reads one row of the embedding for each token: it stays in the host's memory.
    if (layer.kind === "embedding") return { ...nothing, weights: 0, host: bytes, extra: 0 };
    return { ...nothing, weights: bytes, host: 0, extra: pagePadding([bytes]) };
  }
  const products: GpuProduct[] =
    layer.kind === "block"
      ? allProducts(blockProducts(layer, pairs, holding))
      : [headProduct(spec.shape.hidden, spec.shape.vocab, pairs[0] ?? null)];
  const experts = layer.kind === "block" ? heldExperts(layer, pairs, holding, computeDtype) : NO_EXPERTS;
  const allocations = [
    ...products.flatMap((product) => heldAllocations(product, holding, computeDtype)),
    ...experts.allocations,
  ];
  const expansion = expansionBytes(
    [...products, ...experts.weights.map(({ product }) => product)],
    holding,
    computeDtype,
  );
  const padding = pagePadding([
    ...allocations,
    ...pairs.map(({ r, in: input, out }) => r * (input + out) * LORA_BYTES_PER_PARAMETER),
  ]);
  if (layer.kind === "head")
    return { weights: sum(allocations), host: 0, expanded: 0, expansion: 0, extra: padding + expansion };
  const norms = layerWeightBytes(spec, { ...layer, linears: [] }, holding, computeDtype);
  const cached = [...products.map((product) => ({ product, count: 1 })), ...experts.weights].filter(
    ({ product }) => product.quantized,
  );
  const expanded = sum(cached.map(({ product, count }) => count * expandedBytes(product, computeDtype)));
  return { weights: sum(allocations) + norms, host: 0, expanded, expansion, extra: padding };
}

const NO_EXPERTS = { weights: [], allocations: [] } as const;

/** Bytes of the experts' weights, and the allocations of these and of the router's. */
function heldExperts(
  block: BlockLayer,
  pairs: readonly LoraTarget[],
  holding: Holding,
  computeDtype: FloatDtype,
): { readonly weights: readonly ExpertWeights[]; readonly allocations: readonly number[] } {
  const { experts } = block;
  if (experts === undefined) return NO_EXPERTS;
  const weights = expertProducts(block, pairs, holding).map((product) =>
    expertWeights(product, experts.count, computeDtype),
  );
  const { linear, correction } = experts.router;
  const biases = experts.linears.some(({ bias }) => bias) ? experts.count * linear.in : 0;
  const routerBias = linear.bias ? linear.out : 0;
  return {
    weights,
    allocations: [
      ...weights.flatMap(({ product, count }) => {
        const one = heldAllocations(product, holding, computeDtype);
        return Array.from({ length: count }, () => one).flat();
      }),
      roundUp(linear.in, 64) * linear.out * dtypeBytes(computeDtype),
      (biases + routerBias + (correction === null ? 0 : experts.count)) * FLOAT32,
    ],
  };
}

/** What depends on tokens. `learns`: this layer or one before it is trained, so it has a backward pass. */
function transient(
  request: PlanRequest,
  layer: LayerSpec,
  pairs: readonly LoraTarget[],
  learns: boolean,
): Partial<LayerMemory> {
  const { work, computeDtype } = request;
  const { shape } = request.spec;
  const float = dtypeBytes(computeDtype);
  const row = float * shape.hidden;
  const ranks = sum(pairs.filter(({ stack }) => stack === undefined).map(({ r }) => r));
  switch (layer.kind) {
    case "embedding":
      return {};
    case "norm": {
      const saved = learns ? row * work.tokens : 0;
      return { saved, savedFull: saved, workspace: row * work.tokens };
    }
    case "head": {
      const saved = learns ? row * work.labelTokens : 0;
      const chunk = Math.max(1, Math.min(logitRows(shape.vocab), work.labelTokens));
      const product = headProduct(shape.hidden, shape.vocab, pairs[0] ?? null);
      const gpu = onGpu(request) ? gpuHeadWork(product, float, chunk) : 0;
      const workspace =
        row * work.tokens + chunk * (FLOAT32 * roundUp(shape.vocab, 8) + row + 2 * FLOAT32 * ranks) + gpu;
      return { saved, savedFull: saved, workspace };
    }
    case "block": {
      const saved = learns ? (row + FLOAT32 * ranks) * work.tokens : 0;
      const { kept, workspace } = onGpu(request)
        ? workOnGpu(request, layer, pairs, learns)
        : workOnCpu(request, layer, pairs, learns);
      return {
        saved,
        savedFull: saved + kept,
        input: learns ? row * work.tokens : 0,
        workspace,
        recompute: kept,
        cache: cacheBytes(request, layer),
      };
    }
  }
}

/** Bytes of a block's key/value cache. */
function cacheBytes({ spec, work, computeDtype }: PlanRequest, block: BlockLayer): number {
  if (work.cacheTokens === 0) return 0;
  const { cached, state } = attentionSizes(spec, block, 0);
  return cached * dtypeBytes(computeDtype) * work.cacheTokens + state * FLOAT32 * (work.cacheSequences ?? 1);
}

interface BlockWork {
  /** Kept for the backward pass, beside the block's input and LoRA's inner vectors. */
  readonly kept: number;
  readonly workspace: number;
}

function workOnGpu(
  { spec, work, holding, computeDtype }: PlanRequest,
  block: BlockLayer,
  pairs: readonly LoraTarget[],
  learns: boolean,
): BlockWork {
  const products = blockProducts(block, pairs, holding);
  const float = dtypeBytes(computeDtype);
  const eightBit = holding.quantization.method === "8bit" && products.gateUp.quantized && !products.gateUp.e4m3;
  const extra = extraWork(spec, block, float) * work.tokens;
  const attention = attentionSizes(spec, block, float);
  const own = expertProducts(block, pairs, holding);
  const experts = expertWork(block, own, spec.shape.hidden, float);
  const scratch = gpuExpertWork(own, block.experts, holding.quantization.method === "8bit", float, work.tokens);
  if (!learns) {
    const forward = gpuForwardWork(spec.shape, attention, products, eightBit, float, work.tokens);
    return { kept: 0, workspace: Math.max(forward, experts.forward * work.tokens + scratch) + extra };
  }
  const plain = gpuBlockWork(spec.shape, attention, products, eightBit, float, work.tokens);
  return {
    kept: plain.kept + (extraKept(spec, block, float) + experts.kept) * work.tokens,
    workspace: Math.max(plain.workspace, experts.workspace * work.tokens + scratch) + extra,
  };
}

function workOnCpu(request: PlanRequest, block: BlockLayer, pairs: readonly LoraTarget[], learns: boolean): BlockWork {
  const shape = { ...request.spec.shape, ffn: mlpWidth(block) };
  const { tokens } = request.work;
  const float = dtypeBytes(request.computeDtype);
  const ranks = sum(pairs.filter(({ stack }) => stack === undefined).map(({ r }) => r));
  const experts = expertWork(block, expertProducts(block, pairs, request.holding), shape.hidden, float);
  const attention = attentionSizes(request.spec, block, float);
  const dense = blockWork(shape, attention, float, ranks, learns);
  const most = Math.max(dense, learns ? experts.workspace + FLOAT32 * ranks : experts.forward);
  return {
    kept: learns
      ? (keptBeside(shape, attention, float) + extraKept(request.spec, block, float) + experts.kept) * tokens
      : 0,
    workspace: (most + extraWork(request.spec, block, float)) * tokens + codesWork(request, block),
  };
}

/** Width of a block's MLP or of its shared expert; 0 if it has neither. */
function mlpWidth({ linears }: BlockLayer): number {
  return linears.find(({ role }) => role === "down")?.in ?? 0;
}

/**
 * Bytes of a segment beside its layers: an output and a gradient being sent (2 a D a token, and their rounded copies), indices of tokens and
 * chunks, and rotary tables (4 E a token).
 */
export function boundaryBytes(request: PlanRequest): number {
  const { shape } = request.spec;
  const { attentionChunk } = request.spec.rules;
  const chunks = attentionChunk === null ? 0 : 1 + 3 / attentionChunk;
  const turning = sum(request.spec.rules.rotary.map(({ invFreq }) => 2 * invFreq.length));
  const onTheWay = 2 * dtypeBytes(request.computeDtype) * shape.hidden + 2 * roundedBytesPerToken(request);
  return (onTheWay + FLOAT32 * (turning + 4 + chunks)) * request.work.tokens;
}

export function pairsByLayer(lora: readonly LoraTarget[], layers: number): LoraTarget[][] {
  const pairs: LoraTarget[][] = Array.from({ length: layers }, () => []);
  for (const target of lora) pairs[target.layer]!.push(target);
  return pairs;
}

/** Bytes a token of the outputs of attention and MLP where a norm follows them (native/model/block.cpp), kept for the backward pass. */
function extraKept({ shape }: ModelSpec, { attnPostNorm, mlpPostNorm }: BlockLayer, float: number): number {
  return [attnPostNorm, mlpPostNorm].filter((name) => name !== null).length * float * shape.hidden;
}

/**
 * Bytes a token of further workspace in families that differ from Llama: an output of attention or MLP before its norm or factor, or its
 * gradient; the gradient of x where attention and MLP run in parallel; a product whose columns are rearranged.
 */
function extraWork(spec: ModelSpec, block: BlockLayer, float: number): number {
  const { shape, rules, layers } = spec;
  const { hidden } = shape;
  const behind = layers.some((layer) => layer.kind === "block" && (layer.attnPostNorm ?? layer.mlpPostNorm) !== null);
  const branches = behind || rules.scale.residual !== 1 ? 1 : 0;
  return float * ((branches + (rules.parallel ? 1 : 0)) * hidden + attentionSizes(spec, block, float).arranged);
}

function keptBeside({ hidden, ffn }: ModelShape, attention: AttentionSizes, float: number): number {
  const { inputs, output, expanded, sums } = attention;
  return float * (inputs + output + expanded + hidden + 2 * ffn) + FLOAT32 * sums;
}

function blockWork(
  { hidden, ffn }: ModelShape,
  { inputs, output, expanded, forward, backward, queries }: AttentionSizes,
  float: number,
  ranks: number,
  learns: boolean,
): number {
  if (!learns) return float * Math.max(2 * hidden + 3 * ffn, hidden + inputs + expanded + output + forward);
  const mlp = float * (hidden + ffn) + FLOAT32 * ranks;
  // Gate, up and the residual are freed by then. There are gradients of attention's output and inputs, what is recomputed (q and k after their
  // norms), and the queries' gradient in float32 if the compute dtype has 16 bits.
  const gradients = hidden + output + backward;
  const sums = float === FLOAT32 ? 0 : FLOAT32 * queries;
  return Math.max(mlp, float * (gradients - 2 * ffn - hidden) + sums + FLOAT32 * ranks);
}

/** Workspace of products with weights in 8 bits: the input's codes and scales. */
function codesWork({ holding, work }: PlanRequest, block: BlockLayer): number {
  if (holding.quantization.method !== "8bit") return 0;
  const all = [...block.linears, ...(block.experts?.packed === null ? block.experts.linears : [])];
  const packed = all.filter((linear) => isQuantized(linear, holding));
  return Math.max(0, ...packed.map((linear: LinearSpec) => linear.in * (work.tokens + 5)));
}
