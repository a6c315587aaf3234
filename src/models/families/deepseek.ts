import { z } from "zod";
import { latentParts } from "../attention-parts.ts";
import { nullish, parseConfig, unsupported, width } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { decoderConfig } from "../decoder-config.ts";
import { latentScoreFactor, ropeFromConfig } from "../rope.ts";
import { PLAIN_SCALE } from "../rules.ts";
import type { ModelSpec } from "../spec.ts";

const config = decoderConfig.extend({
  q_lora_rank: nullish(width),
  kv_lora_rank: nullish(width),
  qk_nope_head_dim: nullish(width),
  qk_rope_head_dim: nullish(width),
  v_head_dim: nullish(width),
  rope_interleave: nullish(z.boolean()),
  first_k_dense_replace: nullish(z.number().int().nonnegative()),
  n_routed_experts: nullish(z.number().int().nonnegative()),
});

/** What a configuration class takes where config.json leaves a key out. */
interface Defaults {
  readonly family: string;
  readonly prefix: string;
  readonly maxPositions: number;
  readonly firstDense: number;
  readonly experts: number;
}

/** DeepSeek-V2 (defaults of transformers' DeepseekV2Config). */
export function deepseekV2Spec(given: unknown, generation: unknown): ModelSpec {
  const own = { family: "deepseek_v2", prefix: "DeepseekV2", maxPositions: 2048, firstDense: 0, experts: 64 };
  return deepseekSpec(given, generation, own);
}

/** DeepSeek-V3 (defaults of transformers' DeepseekV3Config). */
export function deepseekV3Spec(given: unknown, generation: unknown): ModelSpec {
  const own = { family: "deepseek_v3", prefix: "DeepseekV3", maxPositions: 4096, firstDense: 3, experts: 256 };
  return deepseekSpec(given, generation, own);
}

/** Multi-head latent attention in every block; blocks from first_k_dense_replace on have experts. */
function deepseekSpec(given: unknown, generation: unknown, defaults: Defaults): ModelSpec {
  const parsed = parseConfig(config, given);
  const experts = parsed.n_routed_experts === undefined ? defaults.experts : (parsed.n_routed_experts ?? 0);
  const dense = parsed.first_k_dense_replace ?? defaults.firstDense;
  if (experts > 0 && dense < parsed.num_hidden_layers) {
    unsupported("n_routed_experts", experts, `0, or a first_k_dense_replace of ${parsed.num_hidden_layers}`);
  }
  const sizes = {
    heads: parsed.num_attention_heads,
    qRank: parsed.q_lora_rank === undefined ? 1536 : parsed.q_lora_rank,
    kvRank: parsed.kv_lora_rank ?? 512,
    plain: parsed.qk_nope_head_dim ?? 128,
    turning: parsed.qk_rope_head_dim ?? 64,
    value: parsed.v_head_dim ?? 128,
    bias: parsed.attention_bias ?? false,
  };
  const headDim = sizes.plain + sizes.turning;
  const maxPositions = parsed.max_position_embeddings ?? defaults.maxPositions;
  const mlpBias = parsed.mlp_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: defaults.family,
    prefix: defaults.prefix,
    bias: { gateUp: mlpBias, down: mlpBias },
    headDim,
    kvHeads: sizes.heads,
    eps: parsed.rms_norm_eps ?? 1e-6,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [ropeFromConfig(given, { headDim: sizes.turning, base: 10000, maxPositions })],
    attention: (_, place) => latentParts(place, sizes),
    rules: {
      rotaryInterleaved: parsed.rope_interleave ?? true,
      scale: { ...PLAIN_SCALE, scores: headDim ** -0.5 * latentScoreFactor(given) },
    },
    reads: ["kv_lora_rank", "n_routed_experts"],
  });
}
