import { contradiction, parseConfig, unsupported } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig, headWidth } from "../../decoder-config.ts";
import { ropeFromConfig } from "../../rope.ts";
import type { ModelSpec } from "../../spec.ts";

/**
 * Baichuan 7B, whose code came with the checkpoint: Llama's layout with q, k and v fused in W_pack. Baichuan 13B (ALiBi) and Baichuan 2
 * (a normalised head) have class names of another spelling and are refused.
 */
export function baichuanSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const named = parsed.architectures?.[0];
  if (named === "BaichuanForCausalLM") {
    unsupported("architectures", named, "BaiChuanForCausalLM, Baichuan 7B's; not ALiBi, nor a normalised head");
  }
  const maxPositions =
    parsed.max_position_embeddings ?? contradiction("model_type baichuan needs max_position_embeddings");
  const headDim = headWidth(parsed);
  return decoderSpec(parsed, generation, {
    family: "baichuan",
    prefix: "BaiChuan",
    headDim,
    kvHeads: parsed.num_attention_heads,
    eps: parsed.rms_norm_eps ?? 1e-6,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions })],
    names: { qkv: "W_pack", rotary: null },
  });
}
