import { parseConfig } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { decoderConfig, headWidth } from "../decoder-config.ts";
import { ropeFromConfig } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";

/** OLMo 2: norms of what attention and MLP add, none before them, and of whole q and k (defaults of transformers' Olmo2Config). */
export function olmo2Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const bias = parsed.attention_bias ?? false;
  const headDim = headWidth(parsed);
  const maxPositions = parsed.max_position_embeddings ?? 2048;
  return decoderSpec(parsed, generation, {
    family: "olmo2",
    prefix: "Olmo2",
    bias: { qkv: bias, output: bias },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? parsed.num_attention_heads,
    eps: parsed.rms_norm_eps ?? 1e-5,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions })],
    names: { norms: NORMS_BEHIND, headNorms: ["q_norm", "k_norm"] },
    rules: { headNorm: { whole: true, afterRotary: false } },
  });
}

export const NORMS_BEHIND = {
  attn: null,
  attnPost: "post_attention_layernorm",
  mlp: null,
  mlpPost: "post_feedforward_layernorm",
} as const;
