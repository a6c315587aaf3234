import { parseConfig, unsupported } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

/** Llama 2, 3, 3.1 and what copies its layout (defaults of transformers' LlamaConfig). */
export function llamaSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const windowed = parsed.layer_types?.find((type) => type !== "full_attention");
  if (windowed !== undefined) unsupported("layer_types", windowed, "full_attention");
  const bias = parsed.attention_bias ?? false;
  const mlpBias = parsed.mlp_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "llama",
    prefix: "Llama",
    bias: { qkv: bias, output: bias, gateUp: mlpBias, down: mlpBias },
    ...decoderShape(config, parsed, { eps: 1e-6, maxPositions: 2048, tied: false, rope: { base: 10000 } }),
  });
}
