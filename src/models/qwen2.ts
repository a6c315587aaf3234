import { parseConfig } from "./config.ts";
import { decoderConfig, decoderSpec, headWidth, mixedWindows } from "./decoder.ts";
import type { ModelSpec } from "./spec.ts";

/** Qwen2 and Qwen2.5: biased q, k and v; the smaller sizes tie their head (defaults of transformers' Qwen2Config). */
export function qwen2Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  return decoderSpec(parsed, generation, {
    family: "qwen2",
    prefix: "Qwen2",
    qkvBias: true,
    outputBias: false,
    mlpBias: false,
    headNorm: false,
    headDim: headWidth(parsed),
    kvHeads: parsed.num_key_value_heads ?? 32,
    rmsEps: parsed.rms_norm_eps ?? 1e-6,
    ropeBase: 10000,
    maxPositions: parsed.max_position_embeddings ?? 32768,
    tied: parsed.tie_word_embeddings ?? false,
    slidingWindow: mixedWindows(parsed),
  });
}
