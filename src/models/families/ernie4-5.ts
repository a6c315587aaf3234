import { z } from "zod";
import { nullish, parseConfig } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { decoderConfig } from "../decoder-config.ts";
import { ropeFromConfig } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";

const ernieConfig = decoderConfig.extend({ use_bias: nullish(z.boolean()) });

/** ERNIE 4.5 (dense): Llama's layout in which neighbours turn together (defaults of transformers' Ernie4_5Config). */
export function ernie45Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(ernieConfig, config);
  const bias = parsed.use_bias ?? false;
  const headDim = parsed.head_dim ?? 128;
  const maxPositions = parsed.max_position_embeddings ?? 131072;
  return decoderSpec(parsed, generation, {
    family: "ernie4_5",
    prefix: "Ernie4_5",
    bias: { qkv: bias, output: bias, gateUp: bias, down: bias },
    headDim,
    kvHeads: parsed.num_key_value_heads ?? 2,
    eps: parsed.rms_norm_eps ?? 1e-5,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? true,
    rotary: [ropeFromConfig(config, { headDim, base: 500000, maxPositions })],
    rules: { rotaryInterleaved: true },
  });
}
