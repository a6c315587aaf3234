import type { Dtype, FloatDtype } from "../common/dtype.ts";
import type { QuantizationSettings } from "../common/quantization.ts";

/**
 * What every other part of the program knows about a model. One file a family turns config.json into this;
 * nobody else tests for a family. Names are those of the checkpoint and of transformers' module tree.
 */
export interface ModelSpec {
  /** config.json's model_type, e.g. "llama" or "gemma3_text". */
  readonly family: string;
  /** Class name in transformers, e.g. "QWenLMHeadModel". */
  readonly architecture: string;
  readonly shape: ModelShape;
  readonly rules: ComputeRules;
  /** Every module in transformers' named_modules() order, the root first under "". */
  readonly modules: readonly ModuleSpec[];
  /** Every parameter and buffer in the order a walk of the module tree meets them; a tied tensor stands once more under its second name only in `tied`. */
  readonly tensors: readonly TensorSpec[];
  readonly noSplitModuleClasses: readonly string[];
  /** Groups of two names that share memory, the alias first: ["lm_head.weight", "model.embed_tokens.weight"]. */
  readonly tied: readonly (readonly [string, string])[];
  /** Beginnings of names of a checkpoint's tensors that are no part of this model and are left out (a vision tower). */
  readonly skipped: readonly string[];
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
  /** What of config.json is read otherwise than it may look: a sentence each. */
  readonly remarks: readonly string[];
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

/**
 * What a family's blocks, embedding and head compute beyond sizes: general parts, which planner, worker and engine read. A block is
 * x += attention(norm(x)), x += mlp(norm(x)), with an MLP of down(activation(gate) * up).
 */
export interface ComputeRules {
  /** SiLU; GELU with tanh in erf's place; GELU. */
  readonly activation: "silu" | "gelu_tanh" | "gelu";
  /** RMSNorm, or LayerNorm without a bias. `offset` is added to the weight: 1 where a checkpoint holds weight - 1 (Gemma). */
  readonly norm: { readonly kind: "rms" | "layer"; readonly offset: number };
  /** Norms of q and k: of each head or of the whole row, before or after rotary. Blocks name their weights. */
  readonly headNorm: { readonly whole: boolean; readonly afterRotary: boolean };
  /** Attention and MLP read the same norm's output: x += attention(h) + mlp(h). */
  readonly parallel: boolean;
  /** A fused q, k, v holds, a kv head each, its query heads, its key and its value (InternLM2), else all q, all k, all v. */
  readonly qkvByKvHead: boolean;
  readonly scale: {
    /** Of embedded tokens. */
    readonly embedding: number;
    /** The factor is rounded to the compute dtype first, as a tensor of that dtype would be. */
    readonly embeddingRounded: boolean;
    /** Of what attention and MLP add. */
    readonly residual: number;
    readonly logits: number;
    /** Of attention's scores; null: 1 / sqrt(headDim). */
    readonly scores: number | null;
  };
  /** cap * tanh(z / cap); null: none. */
  readonly cap: { readonly scores: number | null; readonly logits: number | null };
  /**
   * Queries at position p are multiplied by 1 + beta * ln(1 + floor((p + first) / length)), in all blocks (Ministral 3, from 0) or in those
   * without positions (Llama 4, from 1); null: not.
   */
  readonly queryScale: {
    readonly beta: number;
    readonly length: number;
    readonly first: 0 | 1;
    readonly blocks: "all" | "unturned";
  } | null;
  /** Positions of a chunk, for blocks in which a token sees those of its own chunk alone; null: there are none. */
  readonly attentionChunk: number | null;
  /** Rules of positions; each block names its own by number. */
  readonly rotary: readonly RopeSpec[];
  /** Neighbours turn together, 2i with 2i + 1, else i with i + R / 2. */
  readonly rotaryInterleaved: boolean;
  /**
   * Qwen (v1), in evaluation only, for sequences longer than `seqLength`: dynamic NTK base and log-n query scaling.
   * null elsewhere.
   */
  readonly qwenLong: { readonly seqLength: number; readonly dynamicNtk: boolean; readonly logn: boolean } | null;
}

export interface RopeSpec {
  readonly base: number;
  /** Inverse frequencies [R / 2] of the first R columns of a head, any scaling (linear, llama3, yarn) already in them. */
  readonly invFreq: readonly number[];
  /** Factor on cos and sin (yarn, longrope); 1 elsewhere. */
  readonly attentionScaling: number;
  /** Longrope: the frequencies of sequences longer than `from` tokens; null: none. */
  readonly long: { readonly from: number; readonly invFreq: readonly number[] } | null;
  /** Dynamic NTK: a sequence of n > from tokens has the base times (factor n / from - (factor - 1))^(R / (R - 2)); null: none. */
  readonly dynamic: { readonly from: number; readonly factor: number } | null;
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
  /** The checkpoint's name for it, where that is another. */
  readonly stored?: string;
}

export type LayerSpec = EmbeddingLayer | BlockLayer | NormLayer | HeadLayer;

export interface EmbeddingLayer {
  readonly kind: "embedding";
  readonly name: string;
  /** [V, D] */
  readonly weight: string;
  /** Its row is never trained: nn.Embedding's padding_idx, pad_token_id of most families; absent: none. */
  readonly padding?: number;
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
  /** Norms before attention and MLP, and of what they add; null: none. In parallel, MLP reads attention's. */
  readonly attnNorm: string | null;
  readonly attnPostNorm: string | null;
  readonly mlpNorm: string | null;
  readonly mlpPostNorm: string | null;
  /** Norms of q and k, as rules.headNorm says; null: none. */
  readonly qNorm: string | null;
  readonly kNorm: string | null;
  /** Norms of q and k without weights, as rules.headNorm says (Llama 4); absent: none. */
  readonly plainHeadNorms?: true;
  /** [H]: a score of each head that has no value (gpt-oss); absent: none. */
  readonly sinks?: string;
  /** Of attention and MLP. With experts the MLP's are those of the shared expert, which every token goes through, if there is one. */
  readonly linears: readonly LinearSpec[];
  /** A mixture of experts behind attention; absent: the MLP alone. */
  readonly experts?: ExpertsSpec;
  /** Number in rules.rotary; null: this block knows no positions. */
  readonly rotary: number | null;
  /** Keys at most this far back are seen; null: all. */
  readonly slidingWindow: number | null;
  /** A token sees those of its own chunk alone, rules.attentionChunk positions; absent: it does not end at chunks. */
  readonly chunked?: true;
  readonly attention: AttentionKind;
}

/** Experts of a block: y = Σ over the chosen of weight · down(gate(gateUp(h))), or with the weight on h, beside a shared expert. */
export interface ExpertsSpec {
  /** Module path, "model.layers.0.mlp.experts". */
  readonly name: string;
  readonly count: number;
  readonly router: RouterSpec;
  /**
   * gate_up, or gate and up, then down, of one expert: "*" in their names stands for its number. These are the checkpoint's names where
   * it holds each expert's apart.
   */
  readonly linears: readonly LinearSpec[];
  /** Parameters of all experts at once as transformers 5 has them: gate_up_proj and down_proj [N, out, in], or [N, in, out]. */
  readonly transposed: boolean;
  /** Whether checkpoints hold these at once (and not each expert's apart) when they are written anew. */
  readonly storedAtOnce: boolean;
  /** The checkpoint holds the weights in blocks of 32 values with a scale (OCP MX, FP4 E2M1), and so do workers; null: not. */
  readonly packed: "mxfp4" | null;
  /** gpt-oss: g' σ(alpha g') (u' + 1), g' = min(g, limit), u' = u within ±limit; null: activation(g) u. */
  readonly clamp: { readonly limit: number; readonly alpha: number } | null;
  /** gate_up's rows are gate's and up's in turn. */
  readonly interleaved: boolean;
  /** Routing weights are multiplied into what experts take (Llama 4), else into what they give. */
  readonly weighsInput: boolean;
  /**
   * peft takes [N, in, out] for [N, out, in], since the family's class does not say is_transposed: its lora_A is [N r, out], its lora_B
   * [in, r N], and W + B A is [in, out].
   */
  readonly crossedPairs: boolean;
  /** The router stands before the experts in the module tree. */
  readonly routerFirst: boolean;
}

export interface RouterSpec {
  /** [N, D]; never quantised. */
  readonly linear: LinearSpec;
  /** Path of its tensors in the checkpoint. */
  readonly stored: string;
  /** [N], added to scores when the best are chosen and to nothing else; null: none. */
  readonly correction: string | null;
  readonly chosen: number;
  /** Shares of all experts, or a sigmoid each; or, of those whose logits were the best, shares or a sigmoid each. */
  readonly score: "softmax" | "sigmoid" | "softmax_of_chosen" | "sigmoid_of_chosen";
  /** Weights are divided by their sum. */
  readonly normalise: boolean;
  /** Chosen from the best groups alone, by each one's best score or the sum of its two best; null: from all. */
  readonly groups: { readonly count: number; readonly chosen: number; readonly by: "best" | "two_best" } | null;
  readonly factor: number;
}

/** What a block has between its inputs' products and its output projection. */
export type AttentionKind = SoftmaxAttention | DeltaNet | LatentAttention;

/** Softmax attention over heads of q, k and v, of shape.heads, kvHeads and headDim. */
export interface SoftmaxAttention {
  readonly kind: "softmax";
  /** q's product holds, a head each, its query and a gate: what the head gives is multiplied by the gate's sigmoid (Qwen3-Next). */
  readonly gated: boolean;
}

/**
 * A gated delta net (Yang, Kautz, Hatamizadeh, 2024), as Qwen3-Next has it: a causal convolution of q, k and v with SiLU, the gated delta rule with a
 * state [keyDim, valueDim] a value head, and RMSNorm of each head times SiLU of a gate. Value head h goes with key head h / (valueHeads / keyHeads).
 */
export interface DeltaNet {
  readonly kind: "delta";
  readonly keyHeads: number;
  readonly valueHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  /** Taps of the convolution. */
  readonly taps: number;
  /** Parameters beside linears: [2 keyHeads keyDim + valueHeads valueDim, 1, taps]; [valueHeads] twice; [valueDim]. */
  readonly conv: string;
  readonly aLog: string;
  readonly dtBias: string;
  readonly norm: string;
}

/**
 * Multi-head latent attention (DeepSeek-V2, 2024): k and v expand from a normed vector of kvRank columns, q from one of qRank or from the input. Heads
 * of q and k have `plain` columns, then `turning` ones with positions, which k has once for all heads; shape.headDim is their sum. Heads of v have
 * `value` columns.
 */
export interface LatentAttention {
  readonly kind: "latent";
  readonly qRank: number | null;
  readonly kvRank: number;
  readonly plain: number;
  readonly turning: number;
  readonly value: number;
  /** Norms of the latent vectors, with an epsilon of their own. */
  readonly qNorm: string | null;
  readonly kvNorm: string;
  readonly normEps: number;
}

/** Of a product in a block. delta_*: of a gated delta net; *_a, *_b: down to a latent vector, and up from it. */
export type LinearRole =
  | ("qkv" | "q" | "k" | "v" | "o" | "gate_up" | "gate" | "up" | "down" | "router" | "shared_gate")
  | ("delta_qkv" | "delta_z" | "delta_b" | "delta_a" | "delta_qkvz" | "delta_ba")
  | ("q_a" | "q_b" | "kv_a" | "kv_b");

export interface LinearSpec {
  /** "gate_up" holds gate's rows, then up's; "delta_qkvz" and "delta_ba", a key head each, their parts one below the other. */
  readonly role: LinearRole;
  /** Module path, e.g. "transformer.h.0.attn.c_attn"; its tensors are `<name>.weight` [out, in] and `<name>.bias` [out]. */
  readonly name: string;
  readonly in: number;
  readonly out: number;
  readonly bias: boolean;
}
