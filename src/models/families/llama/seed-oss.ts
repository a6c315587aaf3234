import { z } from "zod";
import { nullish, parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

const seedOssConfig = decoderConfig.extend({ attention_out_bias: nullish(z.boolean()) });

/**
 * Seed-OSS: Llama's layout with biased q, k and v (defaults of transformers' SeedOssConfig, but for its dropout: attention_dropout and
 * residual_dropout of the base are refused where they are set and not 0).
 */
export function seedOssSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(seedOssConfig, config);
  const mlpBias = parsed.mlp_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "seed_oss",
    prefix: "SeedOss",
    bias: {
      qkv: parsed.attention_bias ?? true,
      output: parsed.attention_out_bias ?? false,
      gateUp: mlpBias,
      down: mlpBias,
    },
    ...decoderShape(config, parsed, {
      headDim: 128,
      kvHeads: 8,
      eps: 1e-6,
      maxPositions: 524288,
      tied: false,
      rope: { base: 10000 },
    }),
  });
}
