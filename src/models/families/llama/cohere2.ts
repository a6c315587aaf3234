import { z } from "zod";
import { extent, nullish, parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig, everyNthFull, headWidth, layerTypes, windowsByType } from "../../decoder-config.ts";
import { ropeFromConfig } from "../../rope.ts";
import { PLAIN_SCALE } from "../../rules.ts";
import type { ModelSpec } from "../../spec.ts";

const cohere2Config = decoderConfig.extend({
  layer_norm_eps: nullish(z.number().positive().max(1)),
  logit_scale: nullish(z.number().positive().max(1e6)),
  sliding_window_pattern: nullish(extent(4096)),
});

/**
 * Command R7B and A: attention and MLP beside each other behind one LayerNorm; windowed blocks turn, the others know no positions
 * (defaults of transformers' Cohere2Config).
 */
export function cohere2Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(cohere2Config, config);
  const bias = parsed.attention_bias ?? false;
  const headDim = headWidth(parsed);
  const maxPositions = parsed.max_position_embeddings ?? 8192;
  const types = layerTypes(parsed, everyNthFull(parsed.sliding_window_pattern ?? 4));
  const window = parsed.sliding_window === undefined ? 4096 : parsed.sliding_window;
  return decoderSpec(parsed, generation, {
    family: "cohere2",
    prefix: "Cohere2",
    bias: { qkv: bias, output: bias },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? parsed.num_attention_heads,
    eps: parsed.layer_norm_eps ?? 1e-5,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? true,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions })],
    blockRotary: (block) => (types[block] === "sliding_attention" ? 0 : null),
    slidingWindow: windowsByType(types, window),
    names: {
      norms: { attn: "input_layernorm", attnPost: null, mlp: null, mlpPost: null },
      classes: { model: "Model", causal: "ForCausalLM", layer: "DecoderLayer", norm: "LayerNorm" },
    },
    rules: {
      norm: { kind: "layer", offset: 0 },
      parallel: true,
      rotaryInterleaved: true,
      scale: { ...PLAIN_SCALE, logits: parsed.logit_scale ?? 0.0625 },
    },
    reads: ["layer_norm_eps", "logit_scale"],
  });
}
