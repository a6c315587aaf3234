import type { Dtype, FloatDtype } from "../common/dtype.ts";
import type { QuantizationSettings } from "../common/quantization.ts";

/**
 * What every other part of the program knows about a model. One file a family turns config.json into this;
 * nobody else tests for a family. Names are those of the checkpoint and of transformers' module tree.
 */
export interface ModelSpec {
  /** config.json's model_type: "qwen", "qwen2", "qwen3", "llama", "mistral". */
  readonly family: string;
  /** Class name in transformers, e.g. "QWenLMHeadModel". */
  readonly architecture: string;
  readonly shape: ModelShape;
  readonly rope: RopeSpec;
  /** Every module in transformers' named_modules() order, the root first under "". */
  readonly modules: readonly ModuleSpec[];
  /** Every parameter and buffer in the order a walk of the module tree meets them; a tied tensor stands once more under its second name only in `tied`. */
  readonly tensors: readonly TensorSpec[];
  readonly noSplitModuleClasses: readonly string[];
  /** Groups of two names that share memory, the alias first: ["lm_head.weight", "model.embed_tokens.weight"]. */
  readonly tied: readonly (readonly [string, string])[];
  /** The computation in order: embedding, blocks, final norm, head. Placement cuts only between these. */
  readonly layers: readonly LayerSpec[];
  /** dtype that config.json (torch_dtype / dtype) says the checkpoint is in. */
  readonly dtype: Dtype;
  /** How the checkpoint's linear weights are quantised; null: they are not. */
  readonly quantization: CheckpointQuantization | null;
  readonly lossRule: LossRule;
  /** Ids that end generation (config.json and generation_config.json). */
  readonly eosTokenIds: readonly number[];
  readonly maxPositions: number;
}

/** quantization_config of a checkpoint that bitsandbytes quantised. */
export interface CheckpointQuantization {
  readonly settings: QuantizationSettings;
  /** llm_int8_skip_modules */
  readonly skipModules: readonly string[];
  /** bnb_4bit_compute_dtype; null: not said. */
  readonly computeDtype: FloatDtype | null;
}

/** Qwen (v1) averages over each micro-batch of the Trainer; all others over the label tokens of the whole optimizer step. */
export type LossRule = "micro-batch-mean" | "step-token-mean";

export interface ModelShape {
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Width of gate and up, each. */
  readonly ffn: number;
  readonly vocab: number;
  readonly blocks: number;
  readonly rmsEps: number;
}

export interface RopeSpec {
  readonly base: number;
  /** Inverse frequencies [headDim / 2], any scaling (linear, llama3, yarn) already in them. */
  readonly invFreq: readonly number[];
  /** Factor on cos and sin (yarn); 1 elsewhere. */
  readonly attentionScaling: number;
  /**
   * Qwen (v1), in evaluation only, for sequences longer than `seqLength`: dynamic NTK base and log-n query scaling.
   * null elsewhere.
   */
  readonly qwenLong: { readonly seqLength: number; readonly dynamicNtk: boolean; readonly logn: boolean } | null;
}

export interface ModuleSpec {
  readonly name: string;
  readonly className: string;
}

export interface TensorSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly kind: "parameter" | "buffer";
  /** null: the checkpoint's dtype; buffers such as inv_freq stay float32. */
  readonly dtype: Dtype | null;
  /** False for buffers that no checkpoint holds (inv_freq). */
  readonly persistent: boolean;
}

export type LayerSpec = EmbeddingLayer | BlockLayer | NormLayer | HeadLayer;

export interface EmbeddingLayer {
  readonly kind: "embedding";
  readonly name: string;
  /** [V, D] */
  readonly weight: string;
}

export interface NormLayer {
  readonly kind: "norm";
  readonly name: string;
  readonly weight: string;
}

export interface HeadLayer {
  readonly kind: "head";
  readonly name: string;
  /** The checkpoint's tensor that holds it [V, D]: the embedding's when tied. */
  readonly weight: string;
  readonly tied: boolean;
}

export interface BlockLayer {
  readonly kind: "block";
  readonly name: string;
  readonly index: number;
  readonly attnNorm: string;
  readonly mlpNorm: string;
  /** RMSNorm over each head's E values before rotary (Qwen3). */
  readonly qNorm: string | null;
  readonly kNorm: string | null;
  readonly linears: readonly LinearSpec[];
  /** Keys at most this far back are seen; null: all. */
  readonly slidingWindow: number | null;
}

export type LinearRole = "qkv" | "q" | "k" | "v" | "o" | "gate" | "up" | "down";

export interface LinearSpec {
  readonly role: LinearRole;
  /** Module path, e.g. "transformer.h.0.attn.c_attn"; its tensors are `<name>.weight` [out, in] and `<name>.bias` [out]. */
  readonly name: string;
  readonly in: number;
  readonly out: number;
  readonly bias: boolean;
}
