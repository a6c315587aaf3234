import { z } from "zod";
import { nullish, parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import { PLAIN_SCALE } from "../../rules.ts";
import type { ModelSpec } from "../../spec.ts";

const factor = nullish(z.number().positive().max(1e6));
const graniteConfig = decoderConfig.extend({
  embedding_multiplier: factor,
  logits_scaling: factor,
  residual_multiplier: factor,
  attention_multiplier: factor,
});

/** Granite 3 and 4 (dense): Llama's layout with a factor on embeddings, branches, scores and logits (defaults of transformers' GraniteConfig). */
export function graniteSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(graniteConfig, config);
  const bias = parsed.attention_bias ?? false;
  const mlpBias = parsed.mlp_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "granite",
    prefix: "Granite",
    bias: { qkv: bias, output: bias, gateUp: mlpBias, down: mlpBias },
    ...decoderShape(config, parsed, { eps: 1e-6, maxPositions: 2048, tied: false, rope: { base: 10000 } }),
    rules: {
      scale: {
        ...PLAIN_SCALE,
        embedding: parsed.embedding_multiplier ?? 1,
        residual: parsed.residual_multiplier ?? 1,
        logits: 1 / (parsed.logits_scaling ?? 1),
        scores: parsed.attention_multiplier ?? 1,
      },
    },
    reads: ["embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"],
  });
}
