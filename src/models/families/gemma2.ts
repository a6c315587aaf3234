import { parseConfig } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { everyNthFull, layerTypes, windowsByType } from "../decoder-config.ts";
import { ropeFromConfig } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";
import { gemmaConfig, gemmaRules } from "./gemma.ts";

export const GEMMA2_NORMS = {
  attn: "input_layernorm",
  attnPost: "post_attention_layernorm",
  mlp: "pre_feedforward_layernorm",
  mlpPost: "post_feedforward_layernorm",
} as const;

/** Gemma 2: norms before and after attention and MLP, soft caps, every other block windowed (defaults of transformers' Gemma2Config). */
export function gemma2Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(gemmaConfig, config);
  const bias = parsed.attention_bias ?? false;
  const headDim = parsed.head_dim ?? 256;
  const maxPositions = parsed.max_position_embeddings ?? 8192;
  const rules = gemmaRules(parsed);
  const cap = (value: number | null | undefined, fallback: number) => (value === undefined ? fallback : value);
  return decoderSpec(parsed, generation, {
    family: "gemma2",
    prefix: "Gemma2",
    bias: { qkv: bias, output: bias },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? 4,
    eps: parsed.rms_norm_eps ?? 1e-6,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? true,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions })],
    slidingWindow: windowsByType(layerTypes(parsed, everyNthFull(2)), cap(parsed.sliding_window, 4096)),
    names: { norms: GEMMA2_NORMS },
    rules: {
      ...rules,
      scale: { ...rules.scale, scores: (parsed.query_pre_attn_scalar ?? 256) ** -0.5 },
      cap: { scores: cap(parsed.attn_logit_softcapping, 50), logits: cap(parsed.final_logit_softcapping, 30) },
    },
    reads: ["query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"],
  });
}
