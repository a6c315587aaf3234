import { parseConfig } from "../../config.ts";
import { type DecoderFamily, decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

/** GLM-4 of 2024: neighbours turn together, in half of each head; fused gate and up (defaults of transformers' GlmConfig). */
export function glmSpec(config: unknown, generation: unknown): ModelSpec {
  return glmLike(config, generation, { family: "glm", prefix: "Glm" });
}

/** GLM-4-0414: the same with norms of what attention and MLP add (defaults of transformers' Glm4Config). */
export function glm4Spec(config: unknown, generation: unknown): ModelSpec {
  return glmLike(config, generation, {
    family: "glm4",
    prefix: "Glm4",
    names: {
      norms: {
        attn: "input_layernorm",
        attnPost: "post_self_attn_layernorm",
        mlp: "post_attention_layernorm",
        mlpPost: "post_mlp_layernorm",
      },
    },
  });
}

function glmLike(
  config: unknown,
  generation: unknown,
  own: Pick<DecoderFamily, "family" | "prefix" | "names">,
): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  return decoderSpec(parsed, generation, {
    ...own,
    bias: { qkv: parsed.attention_bias ?? true },
    ...decoderShape(config, parsed, {
      headDim: 128,
      kvHeads: 2,
      eps: 1.5625e-7,
      maxPositions: 131072,
      tied: false,
      rope: { base: 10000, partial: 0.5 },
    }),
    names: { gateUp: "gate_up_proj", activation: "activation_fn", ...own.names },
    rules: { rotaryInterleaved: true },
    reads: ["partial_rotary_factor"],
  });
}
