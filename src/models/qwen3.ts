import { parseConfig } from "./config.ts";
import { decoderConfig, decoderSpec, mixedWindows } from "./decoder.ts";
import type { ModelSpec } from "./spec.ts";

/** Qwen3 (dense): an RMSNorm on every head of q and k (defaults of transformers' Qwen3Config). */
export function qwen3Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const bias = parsed.attention_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "qwen3",
    prefix: "Qwen3",
    qkvBias: bias,
    outputBias: bias,
    mlpBias: false,
    headNorm: true,
    headDim: parsed.head_dim ?? 128,
    kvHeads: parsed.num_key_value_heads ?? 32,
    rmsEps: parsed.rms_norm_eps ?? 1e-6,
    ropeBase: 10000,
    maxPositions: parsed.max_position_embeddings ?? 32768,
    tied: parsed.tie_word_embeddings ?? false,
    slidingWindow: mixedWindows(parsed),
  });
}
