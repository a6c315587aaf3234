import { z } from "zod";
import { nullish, parseConfig } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { decoderConfig } from "../decoder-config.ts";
import { ropeFromConfig } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";

const seedOssConfig = decoderConfig.extend({ attention_out_bias: nullish(z.boolean()) });

/**
 * Seed-OSS: Llama's layout with biased q, k and v (defaults of transformers' SeedOssConfig, but for its dropout: attention_dropout and
 * residual_dropout of the base are refused where they are set and not 0).
 */
export function seedOssSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(seedOssConfig, config);
  const mlpBias = parsed.mlp_bias ?? false;
  const headDim = parsed.head_dim ?? 128;
  const maxPositions = parsed.max_position_embeddings ?? 524288;
  return decoderSpec(parsed, generation, {
    family: "seed_oss",
    prefix: "SeedOss",
    bias: {
      qkv: parsed.attention_bias ?? true,
      output: parsed.attention_out_bias ?? false,
      gateUp: mlpBias,
      down: mlpBias,
    },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? 8,
    eps: parsed.rms_norm_eps ?? 1e-6,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions })],
  });
}
