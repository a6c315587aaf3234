import { parseConfig } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { decoderConfig, mixedWindows } from "../decoder-config.ts";
import { ropeFromConfig } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";

/** Qwen3 (dense): an RMSNorm on every head of q and k (defaults of transformers' Qwen3Config). */
export function qwen3Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const bias = parsed.attention_bias ?? false;
  const headDim = parsed.head_dim ?? 128;
  const maxPositions = parsed.max_position_embeddings ?? 32768;
  return decoderSpec(parsed, generation, {
    family: "qwen3",
    prefix: "Qwen3",
    bias: { qkv: bias, output: bias },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? 32,
    eps: parsed.rms_norm_eps ?? 1e-6,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions })],
    slidingWindow: mixedWindows(parsed),
    names: { headNorms: ["q_norm", "k_norm"] },
  });
}
