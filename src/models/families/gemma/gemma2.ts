import { parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { everyNthFull, layerTypes, windowsByType } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";
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
  const rules = gemmaRules(parsed);
  const cap = (value: number | null | undefined, fallback: number) => (value === undefined ? fallback : value);
  return decoderSpec(parsed, generation, {
    family: "gemma2",
    prefix: "Gemma2",
    bias: { qkv: bias, output: bias },
    ...decoderShape(config, parsed, {
      headDim: 256,
      kvHeads: 4,
      eps: 1e-6,
      maxPositions: 8192,
      tied: true,
      rope: { base: 10000 },
    }),
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
