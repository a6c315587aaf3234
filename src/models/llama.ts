import { parseConfig, unsupported } from "./config.ts";
import { decoderConfig, decoderSpec, headWidth } from "./decoder.ts";
import type { ModelSpec } from "./spec.ts";

/** Llama 2, 3, 3.1 and what copies its layout (defaults of transformers' LlamaConfig). */
export function llamaSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const windowed = parsed.layer_types?.find((type) => type !== "full_attention");
  if (windowed !== undefined) unsupported("layer_types", windowed, "full_attention");
  const bias = parsed.attention_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "llama",
    prefix: "Llama",
    qkvBias: bias,
    outputBias: bias,
    mlpBias: parsed.mlp_bias ?? false,
    headNorm: false,
    headDim: headWidth(parsed),
    kvHeads: parsed.num_key_value_heads ?? parsed.num_attention_heads,
    rmsEps: parsed.rms_norm_eps ?? 1e-6,
    ropeBase: 10000,
    maxPositions: parsed.max_position_embeddings ?? 2048,
    tied: parsed.tie_word_embeddings ?? false,
    slidingWindow: () => null,
  });
}
