import { parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { mixedWindows } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";
import { expertCounts, MOE_KEYS, moeConfig, sparseBlocks } from "../moe-config.ts";

/** Qwen3-MoE: Qwen3 with a mixture of experts in most blocks (defaults of transformers' Qwen3MoeConfig). */
export function qwen3MoeSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(moeConfig, config);
  const bias = parsed.attention_bias ?? false;
  const { count, chosen } = expertCounts(parsed, { count: 128, chosen: 8 });
  const sparse = sparseBlocks(parsed);
  const window = (parsed.use_sliding_window ?? false) ? (parsed.sliding_window ?? null) : null;
  return decoderSpec(parsed, generation, {
    family: "qwen3_moe",
    prefix: "Qwen3Moe",
    bias: { qkv: bias, output: bias },
    ...decoderShape(config, parsed, {
      kvHeads: 4,
      eps: 1e-6,
      maxPositions: 32768,
      tied: false,
      rope: { base: 10000 },
    }),
    slidingWindow: parsed.layer_types ? mixedWindows(parsed) : () => window,
    names: { headNorms: ["q_norm", "k_norm"] },
    experts: (block) =>
      sparse(block)
        ? {
            count,
            ffn: parsed.moe_intermediate_size ?? 768,
            router: "gate",
            route: { chosen, score: "softmax", normalise: parsed.norm_topk_prob ?? false },
            routerFirst: false,
          }
        : null,
    reads: MOE_KEYS,
  });
}
