import { parseConfig } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { decoderConfig, headWidth } from "../decoder-config.ts";
import { ropeFromConfig } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";

/**
 * Phi-3, 3.5, Phi-4 and Phi-4-mini: fused q, k, v and gate, up; a part of each head may turn, and long sequences may have frequencies
 * of their own (defaults of transformers' Phi3Config).
 */
export function phi3Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const headDim = headWidth(parsed);
  const maxPositions = parsed.max_position_embeddings ?? 4096;
  return decoderSpec(parsed, generation, {
    family: "phi3",
    prefix: "Phi3",
    headDim,
    kvHeads: parsed.num_key_value_heads ?? parsed.num_attention_heads,
    eps: parsed.rms_norm_eps ?? 1e-5,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [
      ropeFromConfig(config, {
        ...{ headDim, base: 10000, maxPositions, partial: 1, original: 4096 },
        rules: ["longrope"],
      }),
    ],
    slidingWindow: () => parsed.sliding_window ?? null,
    names: { qkv: "qkv_proj", gateUp: "gate_up_proj", activation: "activation_fn", outputFirst: true },
    reads: ["partial_rotary_factor"],
  });
}
