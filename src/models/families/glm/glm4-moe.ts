import { z } from "zod";
import { nullish, parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";
import { deepseekExperts, MOE_KEYS, moeConfig } from "../moe-config.ts";

const glm4MoeConfig = moeConfig.extend({
  use_qk_norm: nullish(z.boolean()),
  num_nextn_predict_layers: nullish(z.number().int().nonnegative().max(64)),
});

/** GLM-4.5, 4.6: DeepSeek-V3's routing beside a shared expert, behind a few dense blocks (defaults of transformers' Glm4MoeConfig). */
export function glm4MoeSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(glm4MoeConfig, config);
  const experts = deepseekExperts(parsed, "v3", {
    ...{ count: 128, chosen: 8, ffn: 1408, shared: 1, dense: 1, factor: 1, normalise: true },
  });
  // Blocks behind the last one predict further tokens.
  const extra = Array.from(
    { length: parsed.num_nextn_predict_layers ?? 1 },
    (_, block) => `model.layers.${parsed.num_hidden_layers + block}.`,
  );
  return decoderSpec(parsed, generation, {
    family: "glm4_moe",
    prefix: "Glm4Moe",
    bias: { qkv: parsed.attention_bias ?? false },
    ...decoderShape(config, parsed, {
      kvHeads: 8,
      eps: 1e-5,
      maxPositions: 131072,
      tied: false,
      rope: { base: 10000, partial: 0.5 },
    }),
    names: { headNorms: (parsed.use_qk_norm ?? false) ? ["q_norm", "k_norm"] : null },
    experts,
    skipped: extra,
    reads: [...MOE_KEYS, "partial_rotary_factor", "use_qk_norm"],
  });
}
