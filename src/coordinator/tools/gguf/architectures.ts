import type { BlockLayer, ModelSpec } from "../../../models/spec.ts";

/**
 * How llama.cpp's graph of an architecture (its src/models/) differs from other families'. The rest follows from ModelSpec. A model that
 * needs more than this is refused: the file would load and compute other numbers.
 */
export interface Architecture {
  /** general.architecture */
  readonly name: string;
  /** Which columns of a head turn together: 2i with 2i + 1, or i with i + R / 2 (llama_model_rope_type). */
  readonly rope: "neighbours" | "halves";
  /** q, k and v are one tensor where the checkpoint has them so. */
  readonly fused?: true;
  /** What the norm before the MLP is called. */
  readonly mlpNorm?: "post_attention_norm";
  /** Linears that may have a bias. */
  readonly biases?: readonly ("q, k, v" | "output" | "MLP" | "router" | "experts")[];
  readonly activation?: "gelu_tanh";
  /** Layer i of `period` sees all where i % period is period - 1, the others have a window; absent: no layer has one. */
  readonly windows?: { readonly period: number };
  /** The tensor that divides each frequency is read, so that any scaling can be written. */
  readonly ropeFactors?: true;
  /** Frequencies of short and long sequences are read. */
  readonly longrope?: true;
  /** Every nth block knows no positions; "windowed": those without a window don't. Absent: all turn. */
  readonly turning?: number | "windowed";
  /** Factors that a key gives, and those that are fixed. Scores: 1 / sqrt(headDim) where absent, the others 1. */
  readonly factors?: {
    readonly keys: readonly FactorKey[];
    readonly fixed?: (spec: ModelSpec) => Partial<Readonly<Record<FactorKey, number>>>;
    /** What stands in logit_scale: a factor, or what logits are divided by. */
    readonly logits?: "divisor";
  };
  /** Soft caps of scores and logits are read. */
  readonly caps?: true;
  /** The head is the embedding's tensor and has none of its own; "own": it is never left out. */
  readonly head?: "tied" | "own";
  /** q and o are square: heads times headDim is hidden. */
  readonly square?: true;
  /** llama.cpp recognises the model by its number of blocks; another number gets no positions. */
  readonly blocks?: number;
  readonly headNorm?: "each" | "whole" | "each behind rotary";
  readonly experts?: ArchitectureExperts;
  readonly latent?: true;
  /** Models whose queries come from no latent vector are known by this number of blocks. */
  readonly directQueries?: number;
  /** Tensors to which llama.cpp's graph adds no adapter: it ignores the pair silently, or ends with an assertion. */
  readonly unadapted?: readonly string[];
  readonly queryScale?: true;
  /** Rows and columns of value heads go by their place among a key head's, then by key head. */
  readonly tiledValueHeads?: true;
  /** Tensors that only this family has: attention's gate, sinks and others. */
  readonly extras?: readonly ("gated attention" | "sinks" | "parallel" | "layer norm" | "delta nets")[];
  /** Further metadata, keys without the architecture in front. */
  readonly own?: (spec: ModelSpec) => Readonly<Record<string, number | readonly number[]>>;
}

export type FactorKey = "embedding" | "residual" | "logits" | "scores";

export interface ArchitectureExperts {
  /** "key": as expert_gating_func says. */
  readonly score: "softmax" | "softmax_of_chosen" | "key";
  /** Whether weights are divided by their sum; "key": as expert_weights_norm says. */
  readonly normalise: boolean | "key";
  /** routed_scaling_factor is read. */
  readonly factor?: true;
  readonly groups?: true;
  readonly correction?: true;
  /** Blocks in front may have none. */
  readonly leadingDense?: true;
  readonly shared?: "always" | "with a gate";
  /** Shared experts are counted in widths of one. */
  readonly sharedCount?: true;
  /** gpt-oss's clamped gate. */
  readonly clamp?: { readonly limit: number; readonly alpha: number };
  /** The width of one is feed_forward_length. */
  readonly plainWidth?: true;
}

const LLAMA: Architecture = {
  name: "llama",
  rope: "neighbours",
  biases: ["q, k, v", "output", "MLP"],
  ropeFactors: true,
};
const QWEN2: Architecture = { name: "qwen2", rope: "halves", biases: ["q, k, v", "output"] };
const QWEN3: Architecture = { ...QWEN2, name: "qwen3", headNorm: "each" };
const GEMMA_EMBEDDING = ({ shape }: ModelSpec) => ({ embedding: Math.sqrt(shape.hidden) });
const GEMMA2_LARGEST = 46;
/** Gemma 2's and 3's largest models are recognised by their number of blocks. They divide scores by hidden / heads. */
const gemmaScores =
  (largest: number) =>
  ({ shape }: ModelSpec): number =>
    (shape.blocks === largest ? shape.hidden / shape.heads : shape.headDim) ** -0.5;
const GEMMA3: Architecture = {
  name: "gemma3",
  rope: "halves",
  activation: "gelu_tanh",
  windows: { period: 6 },
  headNorm: "each",
  factors: { keys: [], fixed: (spec) => ({ ...GEMMA_EMBEDDING(spec), scores: gemmaScores(62)(spec) }) },
};
const DEEPSEEK2: Architecture = {
  name: "deepseek2",
  rope: "neighbours",
  latent: true,
  directQueries: 27,
  unadapted: ["attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa"],
  experts: {
    ...{ score: "key", normalise: "key", factor: true, groups: true, correction: true },
    ...{ leadingDense: true, shared: "always", sharedCount: true },
  },
};
const NEXT_EXPERTS: ArchitectureExperts = { score: "softmax", normalise: true, shared: "with a gate" };
const QWEN3NEXT: Architecture = {
  name: "qwen3next",
  rope: "halves",
  mlpNorm: "post_attention_norm",
  headNorm: "each",
  extras: ["gated attention", "delta nets"],
  experts: NEXT_EXPERTS,
};
/**
 * A text token has one position in all parts of mrope. The file must have the parts, and any split that fills the columns gives the same
 * numbers.
 */
const sections = (spec: ModelSpec) => {
  const pairs = spec.rules.rotary[0]!.invFreq.length;
  const part = Math.floor((pairs * 11) / 32);
  return { "rope.dimension_sections": [part, part, pairs - 2 * part, 0] };
};
const QWEN35: Architecture = { ...QWEN3NEXT, name: "qwen35", tiledValueHeads: true, own: sections };
const { experts: _none, ...QWEN35_DENSE } = QWEN35;
const CHATGLM: Architecture = {
  name: "chatglm",
  rope: "neighbours",
  fused: true,
  square: true,
  biases: ["q, k, v"],
};

/** GLM-4's products of larger precision. */
const PRECISE = ["attn_output", "ffn_down", "ffn_down_shexp"];

/** By ModelSpec.family; the first that fits the model is taken. Families that llama.cpp lacks are absent. */
export const ARCHITECTURES: Readonly<Record<string, readonly Architecture[]>> = {
  llama: [LLAMA],
  mistral: [LLAMA],
  mixtral: [{ ...LLAMA, experts: { score: "softmax", normalise: true, plainWidth: true } }],
  ministral3: [{ ...LLAMA, name: "mistral3", queryScale: true }],
  mistral3: [LLAMA, { ...LLAMA, name: "mistral3", queryScale: true }],
  qwen: [
    {
      ...{ name: "qwen", rope: "halves", fused: true, biases: ["q, k, v"] },
      // As Qwen's own configuration has it: gate's and up's width together.
      own: ({ shape }) => ({ feed_forward_length: 2 * shape.ffn }),
    },
  ],
  qwen2: [QWEN2],
  qwen3: [QWEN3],
  qwen2_vl: [QWEN2],
  qwen2_5_vl: [QWEN2],
  qwen3_vl: [QWEN3],
  qwen2_moe: [{ ...QWEN2, name: "qwen2moe", experts: { score: "softmax", normalise: false, shared: "with a gate" } }],
  qwen3_moe: [{ ...QWEN2, name: "qwen3moe", headNorm: "each", experts: { score: "softmax", normalise: true } }],
  qwen3_next: [QWEN3NEXT],
  qwen3_5_text: [QWEN35_DENSE],
  qwen3_5: [QWEN35_DENSE],
  qwen3_5_moe_text: [{ ...QWEN35, name: "qwen35moe" }],
  qwen3_5_moe: [{ ...QWEN35, name: "qwen35moe" }],
  gemma: [
    {
      ...{ name: "gemma", rope: "halves", activation: "gelu_tanh", head: "tied" },
      factors: { keys: [], fixed: GEMMA_EMBEDDING },
    },
  ],
  gemma2: [
    {
      ...{ name: "gemma2", rope: "halves", activation: "gelu_tanh", head: "tied", caps: true },
      windows: { period: 2 },
      factors: { keys: [], fixed: (spec) => ({ ...GEMMA_EMBEDDING(spec), scores: gemmaScores(GEMMA2_LARGEST)(spec) }) },
    },
  ],
  gemma3_text: [GEMMA3],
  gemma3: [GEMMA3],
  phi3: [{ name: "phi3", rope: "halves", fused: true, square: true, longrope: true }],
  glm: [CHATGLM],
  glm4: [{ name: "glm4", rope: "neighbours", biases: ["q, k, v"], unadapted: PRECISE }],
  chatglm: [CHATGLM],
  glm4_moe: [
    {
      ...{ name: "glm4moe", rope: "halves", mlpNorm: "post_attention_norm", headNorm: "each" },
      biases: ["q, k, v"],
      unadapted: PRECISE,
      experts: {
        ...{ score: "key", normalise: "key", factor: true, groups: true, correction: true },
        ...{ leadingDense: true, shared: "always", sharedCount: true },
      },
    },
  ],
  granite: [
    {
      ...LLAMA,
      name: "granite",
      factors: { keys: ["embedding", "residual", "logits", "scores"], logits: "divisor" },
    },
  ],
  minicpm: [
    {
      ...{ name: "minicpm", rope: "neighbours", biases: ["q, k, v", "output"] },
      ...{ ropeFactors: true, longrope: true },
      factors: { keys: ["embedding", "residual", "logits"], logits: "divisor" },
    },
  ],
  internlm2: [{ name: "internlm2", rope: "neighbours", biases: ["q, k, v", "output"] }],
  baichuan: [{ name: "baichuan", rope: "neighbours", blocks: 32 }],
  cohere2: [
    {
      ...{ name: "cohere2", rope: "neighbours", windows: { period: 4 }, turning: "windowed", head: "tied" },
      square: true,
      extras: ["parallel", "layer norm"],
      factors: { keys: ["logits"] },
    },
  ],
  olmo2: [{ name: "olmo2", rope: "halves", square: true, headNorm: "whole", head: "own" }],
  seed_oss: [{ name: "seed_oss", rope: "halves", mlpNorm: "post_attention_norm", biases: ["q, k, v"] }],
  exaone4: [{ name: "exaone4", rope: "halves", headNorm: "each", ropeFactors: true }],
  ernie4_5: [{ name: "ernie4_5", rope: "neighbours", biases: ["q, k, v", "output"] }],
  hunyuan_v1_dense: [{ name: "hunyuan-dense", rope: "halves", headNorm: "each behind rotary" }],
  smollm3: [{ name: "smollm3", rope: "neighbours", biases: ["q, k, v", "output", "MLP"], turning: 4 }],
  deepseek_v2: [DEEPSEEK2],
  deepseek_v3: [DEEPSEEK2],
  gpt_oss: [
    {
      ...{ name: "gpt-oss", rope: "halves", mlpNorm: "post_attention_norm", windows: { period: 2 } },
      biases: ["q, k, v", "output", "router", "experts"],
      extras: ["sinks"],
      experts: { score: "softmax_of_chosen", normalise: false, clamp: { limit: 7, alpha: 1.702 } },
    },
  ],
};

export const blocksOf = (spec: ModelSpec): BlockLayer[] =>
  spec.layers.filter((layer): layer is BlockLayer => layer.kind === "block");
