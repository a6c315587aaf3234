import { z } from "zod";
import { activationNamed, nullish, parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import { PLAIN_SCALE } from "../../rules.ts";
import type { ComputeRules, ModelSpec } from "../../spec.ts";

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
  const act = typeof parsed["hidden_act"] === "string" ? parsed["hidden_act"] : null;
  return decoderSpec(parsed, generation, {
    family: "gemma",
    prefix: "Gemma",
    bias: { qkv: bias, output: bias },
    ...decoderShape(config, parsed, {
      headDim: 256,
      kvHeads: 16,
      eps: 1e-6,
      maxPositions: 8192,
      tied: true,
      rope: { base: 10000 },
    }),
    rules: gemmaRules({ ...parsed, hidden_activation: parsed.hidden_activation ?? act ?? null }),
  });
}
