import { z } from "zod";
import { nullish, parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

const ernieConfig = decoderConfig.extend({ use_bias: nullish(z.boolean()) });

/** ERNIE 4.5 (dense): Llama's layout in which neighbours turn together (defaults of transformers' Ernie4_5Config). */
export function ernie45Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(ernieConfig, config);
  const bias = parsed.use_bias ?? false;
  return decoderSpec(parsed, generation, {
    family: "ernie4_5",
    prefix: "Ernie4_5",
    bias: { qkv: bias, output: bias, gateUp: bias, down: bias },
    ...decoderShape(config, parsed, {
      headDim: 128,
      kvHeads: 2,
      eps: 1e-5,
      maxPositions: 131072,
      tied: true,
      rope: { base: 500000 },
    }),
    rules: { rotaryInterleaved: true },
  });
}
