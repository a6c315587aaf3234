import { int32Of } from "../common/bytes.ts";
import type { FloatDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import type {
  EngineArch,
  EngineExperts,
  EngineLayer,
  EngineLinear,
  EngineLora,
  SegmentDescription,
} from "../engine/index.ts";
import { fromFloat32, toFloat32 } from "../formats/half.ts";
import { blockVectors } from "../models/block-vectors.ts";
import { type ExpertStack, expertStacks, expertWeights } from "../models/experts.ts";
import type { AttentionKind, ExpertsSpec, LayerSpec, LinearSpec, ModelSpec } from "../models/spec.ts";
import type { LoraPair__Output } from "../rpc/generated/pipelora/v1/LoraPair.ts";
import type { Segment__Output } from "../rpc/generated/pipelora/v1/Segment.ts";
import type { TrainedModule__Output } from "../rpc/generated/pipelora/v1/TrainedModule.ts";

/** The model's shape and rules as the engine takes them. */
export function engineArch(spec: ModelSpec, computeDtype: FloatDtype): EngineArch {
  const { shape, rules } = spec;
  const { scale, cap, queryScale, qwenLong } = rules;
  return {
    hidden: shape.hidden,
    heads: shape.heads,
    kvHeads: shape.kvHeads,
    headDim: shape.headDim,
    ffn: shape.ffn,
    vocab: shape.vocab,
    rmsEps: shape.rmsEps,
    rotary: rules.rotary.map(({ base, invFreq, attentionScaling, long, dynamic }) => ({
      base,
      invFreq: Float64Array.from(invFreq),
      attentionScaling,
      longInvFreq: Float64Array.from(long?.invFreq ?? []),
      longFrom: long?.from ?? dynamic?.from ?? 0,
      dynamicFactor: dynamic?.factor ?? 0,
    })),
    rotaryInterleaved: rules.rotaryInterleaved,
    activation: rules.activation,
    normCentred: rules.norm.kind === "layer",
    normOffset: rules.norm.offset,
    headNormWhole: rules.headNorm.whole,
    headNormAfterRotary: rules.headNorm.afterRotary,
    parallel: rules.parallel,
    qkvByKvHead: rules.qkvByKvHead,
    embeddingScale: scale.embeddingRounded ? rounded(scale.embedding, computeDtype) : scale.embedding,
    residualScale: scale.residual,
    logitScale: scale.logits,
    scoreScale: scale.scores ?? 0,
    scoreCap: cap.scores ?? 0,
    logitCap: cap.logits ?? 0,
    queryScaleBeta: queryScale?.beta ?? 0,
    queryScaleLength: queryScale?.length ?? 0,
    queryScaleFirst: queryScale?.first ?? 0,
    queryScaleUnturned: queryScale?.blocks === "unturned",
    attentionChunk: rules.attentionChunk ?? 0,
    qwenLongSeqLength: qwenLong?.seqLength ?? 0,
    qwenDynamicNtk: qwenLong?.dynamicNtk ?? false,
    qwenLogn: qwenLong?.logn ?? false,
  };
}

/**
 * The factor for NEFTune's noise on embeddings. transformers adds noise to the output of the embedding module. In families whose decoder
 * scales embeddings (Granite, MiniCPM) the factor comes after that; in families whose module scales them (Gemma) before, and it is rounded.
 */
export function noiseScale({ rules: { scale } }: ModelSpec): number {
  return scale.embeddingRounded ? 1 : scale.embedding;
}

/** The value rounded to a dtype. */
function rounded(value: number, dtype: FloatDtype): number {
  return toFloat32(fromFloat32(Float32Array.of(value), dtype), dtype)![0]!;
}

/** A LoRA pair of a segment. `expertsOf`: the name of the parameter, if it holds the weights of all experts. */
export type SegmentPair = Pick<LoraPair__Output, "module" | "r" | "scale" | "dropout" | "moduleId"> &
  Partial<Pick<LoraPair__Output, "expertsOf" | "dora">>;

/** What is trained of a module itself: its weight, its bias, or rows of tokens. */
export type SegmentTrained = Pick<TrainedModule__Output, "module" | "what" | "matrix" | "tokens">;

interface Learned {
  readonly lora: ReadonlyMap<string, SegmentPair>;
  readonly trained: readonly SegmentTrained[];
}

const trainedOf = ({ trained }: Learned, module: string, what: string) =>
  trained.find((one) => one.module === module && one.what === what);

/** Describes one segment for the engine, and names the checkpoint's tensors that it needs. */
export function describeSegment(
  spec: ModelSpec,
  segment: Omit<Segment__Output, "ranks" | "needsBackward" | "forwardSeconds" | "backwardSeconds">,
  lora: ReadonlyMap<string, SegmentPair>,
  trained: readonly SegmentTrained[] = [],
): { description: SegmentDescription; weights: string[] } {
  const layers = spec.layers.slice(segment.firstLayer, segment.lastLayer + 1);
  if (layers.length === 0) {
    throw new PipeloraError(
      "PL_PROTOCOL_MISMATCH",
      `segment ${segment.index} names layers ${segment.firstLayer}–${segment.lastLayer}`,
    );
  }
  return {
    description: {
      layers: layers.map((layer) => engineLayer(spec, layer, { lora, trained })),
      offloadedBlocks: segment.offloadedBlocks,
      checkpointedBlocks: segment.checkpointedBlocks,
      cachedBlocks: segment.cachedBlocks,
      needsInputGrad: segment.needsInputGrad,
    },
    weights: layers.flatMap((layer) => weightNames(spec, layer)),
  };
}

function tokenRowsOf(learned: Learned, module: string): Int32Array | null {
  const tokens = trainedOf(learned, module, "tokens")?.tokens;
  return tokens === undefined ? null : int32Of(tokens);
}

function engineLayer(spec: ModelSpec, layer: LayerSpec, learned: Learned): EngineLayer {
  const { lora } = learned;
  switch (layer.kind) {
    case "embedding": {
      return {
        ...{ kind: "embedding", name: layer.name, weight: layer.weight, lora: engineLora(lora.get(layer.name)) },
        trained: trainedOf(learned, layer.name, "weight")?.matrix ?? null,
        tokenRows: tokenRowsOf(learned, layer.name),
        padding: layer.padding ?? -1,
      };
    }
    case "norm":
      return { kind: "norm", weight: layer.weight };
    case "head":
      return {
        ...{ kind: "head", name: layer.name, weight: layer.weight, lora: engineLora(lora.get(layer.name)) },
        trained: trainedOf(learned, layer.name, "weight")?.matrix ?? null,
        tokenRows: tokenRowsOf(learned, layer.name),
      };
    case "block":
      return {
        kind: "block",
        index: layer.index,
        attnNorm: layer.attnNorm,
        attnPostNorm: layer.attnPostNorm,
        mlpNorm: layer.mlpNorm,
        mlpPostNorm: layer.mlpPostNorm,
        qNorm: layer.qNorm,
        kNorm: layer.kNorm,
        plainHeadNorms: layer.plainHeadNorms ?? false,
        rotary: layer.rotary ?? -1,
        slidingWindow: layer.slidingWindow ?? 0,
        chunked: layer.chunked ?? false,
        ...engineAttention(spec, layer.attention),
        linears: layer.linears.map((linear) => engineLinear(linear, learned)),
        ...(layer.sinks === undefined ? {} : { sinks: layer.sinks }),
        ...(layer.experts === undefined ? {} : { experts: engineExperts(layer.experts, spec, lora) }),
      };
  }
}

function engineAttention({ shape }: ModelSpec, attention: AttentionKind) {
  switch (attention.kind) {
    case "softmax":
      return { gated: attention.gated, delta: null, latent: null };
    case "delta":
      return { gated: false, delta: attention, latent: null };
    case "latent":
      return {
        gated: false,
        delta: null,
        latent: { ...attention, heads: shape.heads, qRank: attention.qRank ?? 0 },
      };
  }
}

function engineLinear(linear: LinearSpec, learned: Learned): EngineLinear {
  const bias = trainedOf(learned, linear.name, "bias")?.matrix;
  return {
    ...linear,
    lora: engineLora(learned.lora.get(linear.name)),
    ...(bias === undefined ? {} : { trainedBias: bias }),
  };
}

function engineExperts(
  experts: ExpertsSpec,
  { rules }: ModelSpec,
  lora: ReadonlyMap<string, SegmentPair>,
): EngineExperts {
  const { router, count, clamp } = experts;
  const own = [...lora.values()].filter(({ expertsOf }) => (expertsOf ?? "") !== "");
  const pair = (stack: ExpertStack) => {
    const found = own.find(({ expertsOf }) => expertsOf === stack.name);
    return found === undefined ? null : { name: found.module, crossed: experts.crossedPairs, ...engineLora(found)! };
  };
  const weights = expertStacks(experts).filter((stack) => stack.in !== null);
  return {
    route: {
      experts: count,
      chosen: router.chosen,
      score: router.score,
      normalise: router.normalise,
      groups: router.groups?.count ?? 1,
      chosenGroups: router.groups?.chosen ?? 1,
      twoBest: router.groups?.by === "two_best",
      factor: router.factor,
    },
    router: engineLinear(router.linear, { lora, trained: [] }),
    correction: router.correction,
    activation: rules.activation,
    interleaved: experts.interleaved,
    weightBefore: experts.weighsInput,
    limit: clamp?.limit ?? 0,
    alpha: clamp?.alpha ?? 1,
    linears: experts.linears.map((linear) => ({ ...linear, lora: null })),
    gateUpLora: pair(weights[0]!),
    downLora: pair(weights[1]!),
  };
}

function engineLora(pair: SegmentPair | undefined): EngineLora | null {
  if (pair === undefined) return null;
  const { r, scale, dropout, moduleId, dora = false } = pair;
  return { r, scale, dropout, moduleId, dora };
}

function weightNames(spec: ModelSpec, layer: LayerSpec): string[] {
  if (layer.kind !== "block") return [layer.weight];
  const vectors = blockVectors(spec, layer).map(({ name }) => name);
  const linears = layer.linears.flatMap(({ name, bias }) =>
    bias ? [`${name}.weight`, `${name}.bias`] : [`${name}.weight`],
  );
  return [...vectors, ...linears, ...(layer.experts === undefined ? [] : expertWeights(layer.experts))];
}
