import { parseConfig, unsupported } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { decoderConfig, headWidth } from "../decoder-config.ts";
import { ropeFromConfig } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";

/** Hunyuan (dense): norms of each head of q and k behind rotary (defaults of transformers' HunYuanDenseV1Config). */
export function hunyuanDenseSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const experts = parsed["num_experts"];
  if (experts !== undefined && experts !== null && experts !== 1) unsupported("num_experts", experts, "1");
  const bias = parsed.attention_bias ?? false;
  const headDim = headWidth(parsed);
  const maxPositions = parsed.max_position_embeddings ?? 2048;
  return decoderSpec(parsed, generation, {
    family: "hunyuan_v1_dense",
    prefix: "HunYuanDenseV1",
    bias: { qkv: bias, output: bias },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? parsed.num_attention_heads,
    eps: parsed.rms_norm_eps ?? 1e-5,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions, rules: ["dynamic"] })],
    names: { headNorms: ["query_layernorm", "key_layernorm"] },
    rules: { headNorm: { whole: false, afterRotary: true } },
    reads: ["use_qk_norm", "num_experts"],
  });
}
