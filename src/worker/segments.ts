import { PipeloraError } from "../common/errors.ts";
import type { EngineArch, EngineLayer, EngineLora, SegmentDescription } from "../engine/index.ts";
import type { LayerSpec, ModelSpec } from "../models/spec.ts";
import type { LoraPair__Output } from "../rpc/generated/pipelora/v1/LoraPair.ts";
import type { Segment__Output } from "../rpc/generated/pipelora/v1/Segment.ts";

/** The model's numbers as the engine takes them. */
export function engineArch(spec: ModelSpec): EngineArch {
  const { shape, rope } = spec;
  return {
    hidden: shape.hidden,
    heads: shape.heads,
    kvHeads: shape.kvHeads,
    headDim: shape.headDim,
    ffn: shape.ffn,
    vocab: shape.vocab,
    rmsEps: shape.rmsEps,
    ropeBase: rope.base,
    ropeInvFreq: Float64Array.from(rope.invFreq),
    ropeAttentionScaling: rope.attentionScaling,
    qwenLongSeqLength: rope.qwenLong?.seqLength ?? 0,
    qwenDynamicNtk: rope.qwenLong?.dynamicNtk ?? false,
    qwenLogn: rope.qwenLong?.logn ?? false,
  };
}

/** One segment as the engine takes it, and the checkpoint tensors it needs. */
export function describeSegment(
  spec: ModelSpec,
  segment: Segment__Output,
  lora: ReadonlyMap<string, LoraPair__Output>,
): { description: SegmentDescription; weights: string[] } {
  const layers = spec.layers.slice(segment.firstLayer, segment.lastLayer + 1);
  if (layers.length === 0) {
    throw new PipeloraError(
      "PL_INTERNAL",
      `segment ${segment.index} names layers ${segment.firstLayer}–${segment.lastLayer}`,
    );
  }
  return {
    description: {
      layers: layers.map((layer) => engineLayer(layer, lora)),
      offloadedBlocks: segment.offloadedBlocks,
      checkpointedBlocks: segment.checkpointedBlocks,
      cachedBlocks: segment.cachedBlocks,
      needsInputGrad: segment.needsInputGrad,
    },
    weights: layers.flatMap(weightNames),
  };
}

function engineLayer(layer: LayerSpec, lora: ReadonlyMap<string, LoraPair__Output>): EngineLayer {
  switch (layer.kind) {
    case "embedding":
      return { kind: "embedding", weight: layer.weight };
    case "norm":
      return { kind: "norm", weight: layer.weight };
    case "head":
      return { kind: "head", name: layer.name, weight: layer.weight, lora: engineLora(lora.get(layer.name)) };
    case "block":
      return {
        kind: "block",
        index: layer.index,
        attnNorm: layer.attnNorm,
        mlpNorm: layer.mlpNorm,
        qNorm: layer.qNorm,
        kNorm: layer.kNorm,
        slidingWindow: layer.slidingWindow ?? 0,
        linears: layer.linears.map((linear) => ({ ...linear, lora: engineLora(lora.get(linear.name)) })),
      };
  }
}

function engineLora(pair: LoraPair__Output | undefined): EngineLora | null {
  if (pair === undefined) return null;
  return { r: pair.r, scale: pair.scale, dropout: pair.dropout, moduleId: pair.moduleId };
}

function weightNames(layer: LayerSpec): string[] {
  if (layer.kind !== "block") return [layer.weight];
  const norms = [layer.attnNorm, layer.mlpNorm, layer.qNorm, layer.kNorm].filter((name) => name !== null);
  const linears = layer.linears.flatMap(({ name, bias }) =>
    bias ? [`${name}.weight`, `${name}.bias`] : [`${name}.weight`],
  );
  return [...norms, ...linears];
}
