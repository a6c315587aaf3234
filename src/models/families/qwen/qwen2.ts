import { parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig, mixedWindows } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

/** Qwen2 and Qwen2.5: biased q, k and v; the smaller sizes tie their head (defaults of transformers' Qwen2Config). */
export function qwen2Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  return decoderSpec(parsed, generation, {
    family: "qwen2",
    prefix: "Qwen2",
    bias: { qkv: true },
    ...decoderShape(config, parsed, {
      kvHeads: 32,
      eps: 1e-6,
      maxPositions: 32768,
      tied: false,
      rope: { base: 10000 },
    }),
    slidingWindow: mixedWindows(parsed),
  });
}
