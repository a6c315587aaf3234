import { parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

/** OLMo 2: norms of what attention and MLP add, none before them, and of whole q and k (defaults of transformers' Olmo2Config). */
export function olmo2Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const bias = parsed.attention_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "olmo2",
    prefix: "Olmo2",
    bias: { qkv: bias, output: bias },
    ...decoderShape(config, parsed, { eps: 1e-5, maxPositions: 2048, tied: false, rope: { base: 10000 } }),
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
