import { z } from "zod";
import { latentParts } from "../attention-parts.ts";
import { nullish, parseConfig, unsupported, width } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import type { FamilyExperts } from "../decoder-experts.ts";
import { latentScoreFactor, ropeFromConfig } from "../rope.ts";
import { PLAIN_SCALE } from "../rules.ts";
import type { ModelSpec } from "../spec.ts";
import { expertCounts, expertGroups, MOE_KEYS, moeConfig } from "./moe-config.ts";

const config = moeConfig.extend({
  q_lora_rank: nullish(width),
  kv_lora_rank: nullish(width),
  qk_nope_head_dim: nullish(width),
  qk_rope_head_dim: nullish(width),
  v_head_dim: nullish(width),
  rope_interleave: nullish(z.boolean()),
  n_routed_experts: nullish(z.number().int().nonnegative().max(1024)),
  topk_method: nullish(z.string().max(64)),
  scoring_func: nullish(z.string().max(64)),
  moe_layer_freq: nullish(z.number()),
  num_nextn_predict_layers: nullish(z.number().int().nonnegative().max(64)),
});
type Config = z.infer<typeof config>;

/** What a configuration class takes where config.json leaves a key out. */
interface Defaults {
  readonly family: string;
  readonly prefix: string;
  readonly maxPositions: number;
  readonly firstDense: number;
  readonly count: number;
  readonly experts: (parsed: Config) => FamilyExperts;
}

/** DeepSeek-V2 (defaults of transformers' DeepseekV2Config). */
export function deepseekV2Spec(given: unknown, generation: unknown): ModelSpec {
  const own = { family: "deepseek_v2", prefix: "DeepseekV2", maxPositions: 2048, firstDense: 0, count: 64 };
  return deepseekSpec(given, generation, { ...own, experts: v2Experts });
}

/** DeepSeek-V3 (defaults of transformers' DeepseekV3Config). */
export function deepseekV3Spec(given: unknown, generation: unknown): ModelSpec {
  const own = { family: "deepseek_v3", prefix: "DeepseekV3", maxPositions: 4096, firstDense: 3, count: 256 };
  return deepseekSpec(given, generation, { ...own, experts: v3Experts });
}

/** Shares of all experts, of the best groups where topk_method says so; not divided by their sum, whatever norm_topk_prob. */
function v2Experts(parsed: Config): FamilyExperts {
  const method = parsed.topk_method ?? "greedy";
  if (method !== "greedy" && method !== "group_limited_greedy")
    unsupported("topk_method", method, "greedy, group_limited_greedy");
  if (parsed.norm_topk_prob === true) unsupported("norm_topk_prob", true, "false");
  known("scoring_func", parsed.scoring_func, "softmax");
  const { count, chosen } = expertCounts(parsed, { count: 64, chosen: 6 });
  const groups = method === "greedy" ? null : expertGroups({ ...parsed, num_experts_per_tok: chosen }, count, 1);
  return {
    count,
    ffn: parsed.moe_intermediate_size ?? 1407,
    router: "gate",
    route: {
      ...{ chosen, score: "softmax", normalise: false },
      groups: groups === null ? null : { ...groups, by: "best" },
      factor: parsed.routed_scaling_factor ?? 1,
    },
    ...shared(parsed, 1407, 2),
    routerFirst: false,
  };
}

/** Sigmoids with a correction when they are chosen, of the groups whose two best are best. */
function v3Experts(parsed: Config): FamilyExperts {
  known("topk_method", parsed.topk_method, "noaux_tc");
  known("scoring_func", parsed.scoring_func, "sigmoid");
  const { count, chosen } = expertCounts(parsed, { count: 256, chosen: 8 });
  const asked = { ...parsed, n_group: parsed.n_group ?? 8, topk_group: parsed.topk_group ?? 4 };
  const groups = expertGroups({ ...asked, num_experts_per_tok: chosen }, count, 2);
  return {
    count,
    ffn: parsed.moe_intermediate_size ?? 2048,
    router: "gate",
    route: {
      ...{ chosen, score: "sigmoid", normalise: parsed.norm_topk_prob ?? true },
      groups: groups === null ? null : { ...groups, by: "two_best" },
      factor: parsed.routed_scaling_factor ?? 2.5,
    },
    correction: "e_score_correction_bias",
    ...shared(parsed, 2048, 1),
    routerFirst: true,
  };
}

function shared(parsed: Config, ffn: number, count: number): Pick<FamilyExperts, "shared"> {
  const width = (parsed.moe_intermediate_size ?? ffn) * (parsed.n_shared_experts ?? count);
  if (width > 0 && parsed.mlp_bias === true) unsupported("mlp_bias", true, "false");
  return width > 0 ? { shared: { name: "shared_experts", ffn: width } } : {};
}

function known(key: string, found: string | null | undefined, only: string): void {
  if (found !== undefined && found !== null && found !== only) unsupported(key, found, only);
}

/** Multi-head latent attention in every block; blocks from first_k_dense_replace on have experts. */
function deepseekSpec(given: unknown, generation: unknown, defaults: Defaults): ModelSpec {
  const parsed = parseConfig(config, given);
  const count = parsed.n_routed_experts === undefined ? defaults.count : (parsed.n_routed_experts ?? 0);
  const dense = count === 0 ? parsed.num_hidden_layers : (parsed.first_k_dense_replace ?? defaults.firstDense);
  if ((parsed.moe_layer_freq ?? 1) !== 1) unsupported("moe_layer_freq", parsed.moe_layer_freq, "1");
  const experts = dense < parsed.num_hidden_layers ? defaults.experts(parsed) : null;
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
    experts: (block) => (block >= dense ? experts : null),
    skipped: extra,
    rules: {
      rotaryInterleaved: parsed.rope_interleave ?? true,
      scale: { ...PLAIN_SCALE, scores: headDim ** -0.5 * latentScoreFactor(given) },
    },
    reads: [...MOE_KEYS, "kv_lora_rank"],
  });
}
