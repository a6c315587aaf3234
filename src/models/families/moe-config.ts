import { z } from "zod";
import { contradiction, extent, nullish, unsupported, width } from "../config.ts";
import { decoderConfig } from "../decoder-config.ts";
import type { FamilyExperts } from "../decoder-experts.ts";

/** Most experts that a token may choose (native/include/pipelora/ops/routing.h: kMostChosen). */
const MOST_CHOSEN = 32;

/** Of all blocks: each has tensors of its own. Five times the largest published model's. */
const MOST_EXPERTS = 2 ** 17;

/** Keys of mixtures of experts, under each of the names that families have for them. */
export const moeConfig = decoderConfig.extend({
  num_experts: nullish(extent(1024)),
  num_local_experts: nullish(extent(1024)),
  n_routed_experts: nullish(extent(1024)),
  num_experts_per_tok: nullish(extent(1024)),
  moe_intermediate_size: nullish(width),
  norm_topk_prob: nullish(z.boolean()),
  decoder_sparse_step: nullish(z.number().int().positive().max(4096)),
  mlp_only_layers: nullish(z.array(z.number().int().nonnegative()).max(4096)),
  first_k_dense_replace: nullish(z.number().int().nonnegative().max(4096)),
  n_shared_experts: nullish(z.number().int().nonnegative().max(1024)),
  shared_expert_intermediate_size: nullish(width),
  routed_scaling_factor: nullish(z.number().positive().max(1e6)),
  n_group: nullish(extent(1024)),
  topk_group: nullish(extent(1024)),
  topk_method: nullish(z.string().max(64)),
  moe_layer_freq: nullish(z.number().int().positive().max(4096)),
});
export type MoeConfig = z.infer<typeof moeConfig>;

/** Keys of moeConfig that no dense family reads. */
export const MOE_KEYS = ["num_experts", "num_local_experts", "n_routed_experts"] as const;

/** Experts, and how many of them a token chooses, where the configuration leaves them out: the defaults given. */
export function expertCounts(
  config: MoeConfig,
  defaults: { readonly count: number; readonly chosen: number },
): { count: number; chosen: number } {
  const count = config.num_experts ?? config.num_local_experts ?? config.n_routed_experts ?? defaults.count;
  const chosen = config.num_experts_per_tok ?? defaults.chosen;
  const all = count * config.num_hidden_layers;
  if (all > MOST_EXPERTS) contradiction(`${all} experts in all blocks are above ${MOST_EXPERTS}`);
  if (chosen > MOST_CHOSEN) unsupported("num_experts_per_tok", chosen, `1 to ${MOST_CHOSEN}`);
  if (chosen > count) contradiction(`num_experts_per_tok ${chosen} is above the number of experts, ${count}`);
  return { count, chosen };
}

/** Qwen's rule of which blocks have experts: every decoder_sparse_step-th but those of mlp_only_layers. */
export function sparseBlocks(config: MoeConfig): (block: number) => boolean {
  const step = config.decoder_sparse_step ?? 1;
  const dense = new Set(config.mlp_only_layers ?? []);
  return (block) => !dense.has(block) && (block + 1) % step === 0;
}

/** Groups of at least `least` experts, of which the best are chosen from; null: one group. */
function expertGroups(config: MoeConfig, count: number, least: number): { count: number; chosen: number } | null {
  const groups = config.n_group ?? 1;
  const chosen = config.topk_group ?? groups;
  if (count % groups !== 0) contradiction(`n_group ${groups} does not divide the ${count} experts`);
  if (groups > 1 && count / groups < least) {
    contradiction(
      `n_group ${groups} leaves groups of ${count / groups} experts, which are judged by their ${least} best`,
    );
  }
  if (chosen > groups) contradiction(`topk_group ${chosen} is above n_group ${groups}`);
  const left = (count / groups) * chosen;
  if ((config.num_experts_per_tok ?? 1) > left) {
    contradiction(
      `num_experts_per_tok ${config.num_experts_per_tok} is above the ${left} experts of topk_group ${chosen} groups`,
    );
  }
  return chosen === groups ? null : { count: groups, chosen };
}

/** What a family's configuration class takes where config.json leaves a key out. */
export interface DeepseekDefaults {
  readonly count: number;
  readonly chosen: number;
  readonly ffn: number;
  readonly shared: number;
  readonly dense: number;
  readonly factor: number;
  readonly normalise: boolean;
}

/**
 * DeepSeek's experts by block, beside a shared one and behind first_k_dense_replace dense blocks. "v2": shares of all experts, from the best
 * groups by their best expert (topk_method group_limited_greedy), or from all (greedy). "v3": a sigmoid each, corrected for the choice, from
 * the best groups by the sum of their two best (GLM-4.5 has it too). As transformers' DeepseekV2TopkRouter and DeepseekV3TopkRouter.
 */
export function deepseekExperts(
  config: MoeConfig,
  kind: "v2" | "v3",
  defaults: DeepseekDefaults,
): (block: number) => FamilyExperts | null {
  const { count, chosen } = expertCounts(config, defaults);
  const frequency = config.moe_layer_freq ?? 1;
  if (frequency !== 1) unsupported("moe_layer_freq", frequency, "1");
  const method = config.topk_method ?? (kind === "v2" ? "greedy" : "noaux_tc");
  const known = kind === "v2" ? ["greedy", "group_limited_greedy"] : ["noaux_tc"];
  if (!known.includes(method)) unsupported("topk_method", method, known.join(", "));
  const normalise = config.norm_topk_prob ?? defaults.normalise;
  // Code of before transformers divides by the sum then; transformers does not.
  if (kind === "v2" && normalise) unsupported("norm_topk_prob", true, "false");
  const groups =
    method === "greedy" ? null : expertGroups({ ...config, num_experts_per_tok: chosen }, count, kind === "v2" ? 1 : 2);
  const ffn = config.moe_intermediate_size ?? defaults.ffn;
  const shared = ffn * (config.n_shared_experts ?? defaults.shared);
  const dense = config.first_k_dense_replace ?? defaults.dense;
  const experts: FamilyExperts = {
    count,
    ffn,
    router: "gate",
    route: {
      chosen,
      score: kind === "v2" ? "softmax" : "sigmoid",
      normalise,
      groups: groups === null ? null : { ...groups, by: kind === "v2" ? "best" : "two_best" },
      factor: config.routed_scaling_factor ?? defaults.factor,
    },
    ...(kind === "v3" ? { correction: "e_score_correction_bias" } : {}),
    ...(shared > 0 ? { shared: { name: "shared_experts", ffn: shared } } : {}),
    routerFirst: false,
  };
  return (block) => (block >= dense ? experts : null);
}
