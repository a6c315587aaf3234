import { parseConfig, unsupported } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

/** Hunyuan (dense): norms of each head of q and k behind rotary (defaults of transformers' HunYuanDenseV1Config). */
export function hunyuanDenseSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const experts = parsed["num_experts"];
  if (experts !== undefined && experts !== null && experts !== 1) unsupported("num_experts", experts, "1");
  const bias = parsed.attention_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "hunyuan_v1_dense",
    prefix: "HunYuanDenseV1",
    bias: { qkv: bias, output: bias },
    ...decoderShape(config, parsed, {
      eps: 1e-5,
      maxPositions: 2048,
      tied: false,
      rope: { base: 10000, alpha: true },
    }),
    names: { headNorms: ["query_layernorm", "key_layernorm"] },
    rules: { headNorm: { whole: false, afterRotary: true } },
    reads: ["use_qk_norm", "num_experts"],
  });
}
