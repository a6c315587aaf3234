import { parseConfig } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { decoderConfig, headWidth, mixedWindows } from "../decoder-config.ts";
import { ropeFromConfig } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";

/** Qwen2 and Qwen2.5: biased q, k and v; the smaller sizes tie their head (defaults of transformers' Qwen2Config). */
export function qwen2Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const headDim = headWidth(parsed);
  const maxPositions = parsed.max_position_embeddings ?? 32768;
  return decoderSpec(parsed, generation, {
    family: "qwen2",
    prefix: "Qwen2",
    bias: { qkv: true },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? 32,
    eps: parsed.rms_norm_eps ?? 1e-6,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions })],
    slidingWindow: mixedWindows(parsed),
  });
}
