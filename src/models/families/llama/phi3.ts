import { parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

/**
 * Phi-3, 3.5, Phi-4 and Phi-4-mini: fused q, k, v and gate, up; a part of each head may turn, and long sequences may have frequencies
 * of their own (defaults of transformers' Phi3Config).
 */
export function phi3Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  return decoderSpec(parsed, generation, {
    family: "phi3",
    prefix: "Phi3",
    ...decoderShape(config, parsed, {
      eps: 1e-5,
      maxPositions: 4096,
      tied: false,
      rope: { base: 10000, partial: 1, original: 4096, longropeAlone: true },
    }),
    slidingWindow: () => parsed.sliding_window ?? null,
    names: { qkv: "qkv_proj", gateUp: "gate_up_proj", activation: "activation_fn", outputFirst: true },
    reads: ["partial_rotary_factor"],
  });
}
