import { z } from "zod";
import { nullish, parseConfig, unsupported } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { layerTypes, windowsByType } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";
import { expertCounts, MOE_KEYS, moeConfig, sparseBlocks } from "../moe-config.ts";

const qwen2MoeConfig = moeConfig.extend({ qkv_bias: nullish(z.boolean()) });

/** Qwen1.5-MoE and Qwen2-MoE: experts beside a shared one with a gate of its own (defaults of transformers' Qwen2MoeConfig). */
export function qwen2MoeSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(qwen2MoeConfig, config);
  const { count, chosen } = expertCounts(parsed, { count: 60, chosen: 4 });
  const sparse = sparseBlocks(parsed);
  // Releases of transformers differ in which blocks a window holds for where layer_types does not say it.
  if ((parsed.use_sliding_window ?? false) && !parsed.layer_types)
    unsupported("use_sliding_window", true, "false, or with layer_types");
  const window = (parsed.use_sliding_window ?? false) ? (parsed.sliding_window ?? 4096) : null;
  return decoderSpec(parsed, generation, {
    family: "qwen2_moe",
    prefix: "Qwen2Moe",
    bias: { qkv: parsed.qkv_bias ?? true },
    ...decoderShape(config, parsed, {
      kvHeads: 16,
      eps: 1e-6,
      maxPositions: 32768,
      tied: false,
      rope: { base: 10000 },
    }),
    slidingWindow: windowsByType(
      layerTypes(parsed, () => "full_attention"),
      window,
    ),
    experts: (block) =>
      sparse(block)
        ? {
            count,
            ffn: parsed.moe_intermediate_size ?? 1408,
            router: "gate",
            route: { chosen, score: "softmax", normalise: parsed.norm_topk_prob ?? false },
            shared: {
              name: "shared_expert",
              ffn: parsed.shared_expert_intermediate_size ?? 5632,
              gate: "shared_expert_gate",
            },
            routerFirst: true,
          }
        : null,
    reads: MOE_KEYS,
  });
}
