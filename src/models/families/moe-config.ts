import { z } from "zod";
import { contradiction, extent, nullish, width } from "../config.ts";
import { decoderConfig } from "../decoder-config.ts";

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
  if (chosen > count) contradiction(`num_experts_per_tok ${chosen} is above the number of experts, ${count}`);
  return { count, chosen };
}

/** Qwen's rule of which blocks have experts: every decoder_sparse_step-th but those of mlp_only_layers. */
export function sparseBlocks(config: MoeConfig): (block: number) => boolean {
  const step = config.decoder_sparse_step ?? 1;
  const dense = new Set(config.mlp_only_layers ?? []);
  return (block) => !dense.has(block) && (block + 1) % step === 0;
}

/** Groups of experts, of which the best are chosen from; null: one group. */
export function expertGroups(config: MoeConfig, count: number): { count: number; chosen: number } | null {
  const groups = config.n_group ?? 1;
  const chosen = config.topk_group ?? groups;
  if (count % groups !== 0) contradiction(`n_group ${groups} does not divide the ${count} experts`);
  if (chosen > groups) contradiction(`topk_group ${chosen} is above n_group ${groups}`);
  const left = (count / groups) * chosen;
  if ((config.num_experts_per_tok ?? 1) > left) {
    contradiction(
      `num_experts_per_tok ${config.num_experts_per_tok} is above the ${left} experts of topk_group ${chosen} groups`,
    );
  }
  return chosen === groups ? null : { count: groups, chosen };
}
