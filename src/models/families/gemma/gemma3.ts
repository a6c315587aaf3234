import { z } from "zod";
import { nullish, parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { everyNthFull, layerTypes, windowsByType } from "../../decoder-config.ts";
import { ropeFromConfig } from "../../rope.ts";
import type { ModelSpec } from "../../spec.ts";
import { type TextPart, textPartSpec } from "../text-part.ts";
import { gemmaConfig, gemmaRules } from "./gemma.ts";
import { GEMMA2_NORMS } from "./gemma2.ts";

const gemma3Config = gemmaConfig.extend({
  rope_local_base_freq: nullish(z.number().positive().max(1e12)),
  sliding_window_pattern: nullish(z.number().int().positive().max(4096)),
});

const ALONE: TextPart = {
  family: "gemma3_text",
  prefix: "Gemma3",
  names: { classes: { model: "TextModel", causal: "ForCausalLM", layer: "DecoderLayer", norm: "RMSNorm" } },
};

/** Gemma 3 with its vision tower, of which the text model is trained. */
export function gemma3Spec(config: unknown, generation: unknown): ModelSpec {
  return textPartSpec(config, generation, { family: "gemma3", prefix: "Gemma3" }, { gemma3_text: gemma3TextSpec });
}

/**
 * Gemma 3's text model: Gemma 2's norms, norms of q and k, five windowed blocks for one that sees all, and positions of their own for
 * each kind (defaults of transformers' Gemma3TextConfig).
 */
export function gemma3TextSpec(config: unknown, generation: unknown, part: TextPart = ALONE): ModelSpec {
  const parsed = parseConfig(gemma3Config, config);
  const bias = parsed.attention_bias ?? false;
  const headDim = parsed.head_dim ?? 256;
  const maxPositions = parsed.max_position_embeddings ?? 131072;
  const rules = gemmaRules(parsed);
  const types = layerTypes(parsed, everyNthFull(parsed.sliding_window_pattern ?? 6));
  const local = parsed.rope_local_base_freq ?? 10000;
  return decoderSpec(parsed, generation, {
    ...part,
    bias: { qkv: bias, output: bias },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? 4,
    eps: parsed.rms_norm_eps ?? 1e-6,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? true,
    rotary: [
      ropeFromConfig(config, { headDim, base: 1000000, maxPositions, layerType: "full_attention" }),
      ropeFromConfig(config, { headDim, base: local, maxPositions, layerType: "sliding_attention", unscaled: true }),
    ],
    blockRotary: (block) => (types[block] === "sliding_attention" ? 1 : 0),
    slidingWindow: windowsByType(types, parsed.sliding_window === undefined ? 4096 : parsed.sliding_window),
    names: { norms: GEMMA2_NORMS, headNorms: ["q_norm", "k_norm"], ...part.names },
    rules: {
      ...rules,
      scale: { ...rules.scale, scores: (parsed.query_pre_attn_scalar ?? 256) ** -0.5 },
      cap: { scores: null, logits: parsed.final_logit_softcapping ?? null },
    },
    reads: ["query_pre_attn_scalar", "final_logit_softcapping"],
  });
}
