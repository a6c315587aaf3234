import { parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig, mixedWindows } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

/** Qwen3 (dense): an RMSNorm on every head of q and k (defaults of transformers' Qwen3Config). */
export function qwen3Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const bias = parsed.attention_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "qwen3",
    prefix: "Qwen3",
    bias: { qkv: bias, output: bias },
    ...decoderShape(config, parsed, {
      headDim: 128,
      kvHeads: 32,
      eps: 1e-6,
      maxPositions: 32768,
      tied: false,
      rope: { base: 10000 },
    }),
    slidingWindow: mixedWindows(parsed),
    names: { headNorms: ["q_norm", "k_norm"] },
  });
}
