import { z } from "zod";
import { nullish, parseConfig, unsupported, width } from "../../config.ts";
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

/** Factors on embeddings, branches, scores and logits. */
function graniteFactors(parsed: z.infer<typeof graniteConfig>) {
  return {
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
  };
}

/** Granite 3: Llama's layout with a factor on embeddings, branches, scores and logits (defaults of transformers' GraniteConfig). */
export function graniteSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(graniteConfig, config);
  const bias = parsed.attention_bias ?? false;
  const mlpBias = parsed.mlp_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "granite",
    prefix: "Granite",
    bias: { qkv: bias, output: bias, gateUp: mlpBias, down: mlpBias },
    ...decoderShape(config, parsed, { eps: 1e-6, maxPositions: 2048, tied: false, rope: { base: 10000 } }),
    ...graniteFactors(parsed),
  });
}

const hybridConfig = graniteConfig.extend({
  shared_intermediate_size: nullish(width),
  num_local_experts: nullish(z.number().int().nonnegative()),
  position_embedding_type: nullish(z.string().max(64)),
});

/**
 * Granite 4 where every block has attention and a dense MLP (micro, 1b, 350m): Granite 3 with gate and up fused (defaults of
 * transformers' GraniteMoeHybridConfig). Its Mamba blocks and experts are refused.
 */
export function graniteHybridSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(hybridConfig, config);
  const experts = parsed.num_local_experts ?? 8;
  if (experts !== 0) unsupported("num_local_experts", experts, "0");
  const types = parsed.layer_types ?? Array.from({ length: parsed.num_hidden_layers }, () => "mamba");
  const other = types.find((type) => type !== "attention" && type !== "full_attention");
  if (other !== undefined) unsupported("layer_types", other, "attention");
  const turns = parsed.position_embedding_type === "rope";
  const bias = parsed.attention_bias ?? false;
  const sizes = { ...parsed, intermediate_size: parsed.shared_intermediate_size ?? 1024, layer_types: null };
  return decoderSpec(sizes, generation, {
    family: "granitemoehybrid",
    prefix: "GraniteMoeHybrid",
    bias: { qkv: bias, output: bias },
    ...decoderShape(config, parsed, { eps: 1e-6, maxPositions: 2048, tied: false, rope: { base: 10000 } }),
    ...(turns ? {} : { blockRotary: () => null }),
    names: { mlp: "shared_mlp", gateUp: "input_linear", down: "output_linear", activation: "activation" },
    ...graniteFactors(parsed),
  });
}
