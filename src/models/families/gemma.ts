import { z } from "zod";
import { activationNamed, nullish, parseConfig } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { decoderConfig } from "../decoder-config.ts";
import { ropeFromConfig } from "../rope.ts";
import { PLAIN_SCALE } from "../rules.ts";
import type { ComputeRules, ModelSpec } from "../spec.ts";

export const gemmaConfig = decoderConfig.extend({
  hidden_activation: nullish(z.string().max(64)),
  query_pre_attn_scalar: nullish(z.number().positive().max(1e6)),
  attn_logit_softcapping: nullish(z.number().positive().max(1e6)),
  final_logit_softcapping: nullish(z.number().positive().max(1e6)),
});
export type GemmaConfig = z.infer<typeof gemmaConfig>;

/** What all Gemmas have: norms that multiply by 1 + weight, embeddings times sqrt(hidden_size), GELU with tanh. */
export function gemmaRules(parsed: GemmaConfig): Pick<ComputeRules, "activation" | "norm" | "scale"> {
  return {
    activation: activationNamed("hidden_activation", parsed.hidden_activation, "gelu_tanh"),
    norm: { kind: "rms", offset: 1 },
    scale: { ...PLAIN_SCALE, embedding: Math.sqrt(parsed.hidden_size), embeddingRounded: true },
  };
}

/** Gemma (defaults of transformers' GemmaConfig): of its two names for the activation, hidden_activation goes first. */
export function gemmaSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(gemmaConfig, config);
  const bias = parsed.attention_bias ?? false;
  const headDim = parsed.head_dim ?? 256;
  const maxPositions = parsed.max_position_embeddings ?? 8192;
  const act = typeof parsed["hidden_act"] === "string" ? parsed["hidden_act"] : null;
  return decoderSpec(parsed, generation, {
    family: "gemma",
    prefix: "Gemma",
    bias: { qkv: bias, output: bias },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? 16,
    eps: parsed.rms_norm_eps ?? 1e-6,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? true,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions })],
    rules: gemmaRules({ ...parsed, hidden_activation: parsed.hidden_activation ?? act ?? null }),
  });
}
