import { z } from "zod";
import { latentParts } from "../attention-parts.ts";
import { nullish, parseConfig, unsupported, width } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { latentScoreFactor, ropeFromConfig } from "../rope.ts";
import { PLAIN_SCALE } from "../rules.ts";
import type { ModelSpec } from "../spec.ts";
import { type DeepseekDefaults, deepseekExperts, MOE_KEYS, moeConfig } from "./moe-config.ts";

const config = moeConfig.extend({
  q_lora_rank: nullish(width),
  kv_lora_rank: nullish(width),
  qk_nope_head_dim: nullish(width),
  qk_rope_head_dim: nullish(width),
  v_head_dim: nullish(width),
  rope_interleave: nullish(z.boolean()),
  n_routed_experts: nullish(z.number().int().nonnegative().max(1024)),
  scoring_func: nullish(z.string().max(64)),
  num_nextn_predict_layers: nullish(z.number().int().nonnegative().max(64)),
});

/** What a configuration class takes where config.json leaves a key out. */
interface Defaults {
  readonly family: string;
  readonly prefix: string;
  readonly maxPositions: number;
  readonly experts: DeepseekDefaults;
  readonly kind: "v2" | "v3";
  readonly scores: string;
}

/** DeepSeek-V2 (defaults of transformers' DeepseekV2Config). */
export function deepseekV2Spec(given: unknown, generation: unknown): ModelSpec {
  return deepseekSpec(given, generation, {
    ...{ family: "deepseek_v2", prefix: "DeepseekV2", maxPositions: 2048, kind: "v2", scores: "softmax" },
    experts: { count: 64, chosen: 6, ffn: 1407, shared: 2, dense: 0, factor: 1, normalise: false },
  });
}

/** DeepSeek-V3 (defaults of transformers' DeepseekV3Config). */
export function deepseekV3Spec(given: unknown, generation: unknown): ModelSpec {
  const groups = { n_group: 8, topk_group: 4 };
  const whole = typeof given === "object" && given !== null ? { ...groups, ...given } : given;
  return deepseekSpec(whole, generation, {
    ...{ family: "deepseek_v3", prefix: "DeepseekV3", maxPositions: 4096, kind: "v3", scores: "sigmoid" },
    experts: { count: 256, chosen: 8, ffn: 2048, shared: 1, dense: 3, factor: 2.5, normalise: true },
  });
}

function known(key: string, found: string | null | undefined, only: string): void {
  if (found !== undefined && found !== null && found !== only) unsupported(key, found, only);
}

/** Multi-head latent attention in every block; blocks from first_k_dense_replace on have experts. */
function deepseekSpec(given: unknown, generation: unknown, defaults: Defaults): ModelSpec {
  const parsed = parseConfig(config, given);
  known("scoring_func", parsed.scoring_func, defaults.scores);
  const mixture = parsed.n_routed_experts !== 0 && parsed.n_routed_experts !== null;
  const experts = mixture ? deepseekExperts(parsed, defaults.kind, defaults.experts) : () => null;
  // Blocks behind the last one predict further tokens.
  const extra = Array.from(
    { length: parsed.num_nextn_predict_layers ?? 1 },
    (_, block) => `model.layers.${parsed.num_hidden_layers + block}.`,
  );
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
  if (mlpBias && mixture) unsupported("mlp_bias", true, "false beside experts");
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
    experts,
    skipped: extra,
    rules: {
      // DeepSeek-V2's code does not read rope_interleave.
      rotaryInterleaved: defaults.kind === "v2" || (parsed.rope_interleave ?? true),
      scale: { ...PLAIN_SCALE, scores: headDim ** -0.5 * latentScoreFactor(given) },
    },
    reads: [...MOE_KEYS, "kv_lora_rank"],
  });
}
