import { z } from "zod";
import { nullish, parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import { PLAIN_SCALE } from "../../rules.ts";
import type { ModelSpec } from "../../spec.ts";

const factor = nullish(z.number().positive().max(1e6));
const minicpmConfig = decoderConfig.extend({ scale_emb: factor, scale_depth: factor, dim_model_base: factor });

/**
 * MiniCPM, whose code came with the checkpoint: Llama's layout with embeddings times scale_emb, branches times
 * scale_depth / sqrt(blocks), and logits over hidden_size / dim_model_base.
 */
export function minicpmSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(minicpmConfig, config);
  const bias = parsed.attention_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "minicpm",
    prefix: "MiniCPM",
    bias: { qkv: bias, output: bias },
    ...decoderShape(config, parsed, { eps: 1e-6, maxPositions: 2048, tied: true, rope: { base: 10000 } }),
    names: { rotary: null },
    rules: {
      scale: {
        ...PLAIN_SCALE,
        embedding: parsed.scale_emb ?? 1,
        residual: (parsed.scale_depth ?? 1) / Math.sqrt(parsed.num_hidden_layers),
        logits: (parsed.dim_model_base ?? 1) / parsed.hidden_size,
      },
    },
    reads: ["scale_emb", "scale_depth", "dim_model_base"],
  });
}
