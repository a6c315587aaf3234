import { parseConfig } from "./config.ts";
import { decoderConfig, decoderSpec, headWidth } from "./decoder.ts";
import type { ModelSpec } from "./spec.ts";

/** Mistral 7B and its like: Llama's layout with one attention window for all blocks (defaults of transformers' MistralConfig). */
export function mistralSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const window = parsed.sliding_window === undefined ? 4096 : parsed.sliding_window;
  return decoderSpec(parsed, generation, {
    family: "mistral",
    prefix: "Mistral",
    qkvBias: false,
    outputBias: false,
    mlpBias: false,
    headNorm: false,
    headDim: headWidth(parsed),
    kvHeads: parsed.num_key_value_heads ?? 8,
    rmsEps: parsed.rms_norm_eps ?? 1e-6,
    ropeBase: 10000,
    maxPositions: parsed.max_position_embeddings ?? 131072,
    tied: parsed.tie_word_embeddings ?? false,
    slidingWindow: () => window,
  });
}
