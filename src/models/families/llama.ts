import { parseConfig, unsupported } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { decoderConfig, headWidth } from "../decoder-config.ts";
import { ropeFromConfig } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";

/** Llama 2, 3, 3.1 and what copies its layout (defaults of transformers' LlamaConfig). */
export function llamaSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const windowed = parsed.layer_types?.find((type) => type !== "full_attention");
  if (windowed !== undefined) unsupported("layer_types", windowed, "full_attention");
  const bias = parsed.attention_bias ?? false;
  const mlpBias = parsed.mlp_bias ?? false;
  const headDim = headWidth(parsed);
  const maxPositions = parsed.max_position_embeddings ?? 2048;
  return decoderSpec(parsed, generation, {
    family: "llama",
    prefix: "Llama",
    bias: { qkv: bias, output: bias, gateUp: mlpBias, down: mlpBias },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? parsed.num_attention_heads,
    eps: parsed.rms_norm_eps ?? 1e-6,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions })],
  });
}
