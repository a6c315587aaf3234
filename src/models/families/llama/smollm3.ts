import { z } from "zod";
import { contradiction, extent, nullish, parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig, layerTypes, windowsByType } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

const smollm3Config = decoderConfig.extend({
  no_rope_layers: nullish(z.array(z.number().int().min(0).max(1)).max(4096)),
  no_rope_layer_interval: nullish(extent(4096)),
});

/** SmolLM3: Llama's layout; every fourth block knows no positions (defaults of transformers' SmolLM3Config). */
export function smollm3Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(smollm3Config, config);
  const bias = parsed.attention_bias ?? false;
  const mlpBias = parsed.mlp_bias ?? false;
  // 1: the block turns, whatever the key's name says.
  const given = parsed.no_rope_layers ?? null;
  if (given !== null && given.length < parsed.num_hidden_layers) {
    contradiction(`no_rope_layers has ${given.length} entries for num_hidden_layers ${parsed.num_hidden_layers}`);
  }
  const interval = parsed.no_rope_layer_interval ?? 4;
  const turns = (block: number) => (given === null ? (block + 1) % interval !== 0 : given[block] === 1);
  const window = (parsed.use_sliding_window ?? false) ? (parsed.sliding_window ?? null) : null;
  const types = layerTypes(parsed, (block) =>
    window !== null && !turns(block) ? "sliding_attention" : "full_attention",
  );
  return decoderSpec(parsed, generation, {
    family: "smollm3",
    prefix: "SmolLM3",
    bias: { qkv: bias, output: bias, gateUp: mlpBias, down: mlpBias },
    ...decoderShape(config, parsed, {
      kvHeads: 4,
      eps: 1e-6,
      maxPositions: 32768,
      tied: true,
      rope: { base: 2000000 },
    }),
    blockRotary: (block) => (turns(block) ? 0 : null),
    slidingWindow: windowsByType(types, window),
    reads: ["no_rope_layers"],
  });
}
