import { z } from "zod";
import { nullish, parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";

const internlm2Config = decoderConfig.extend({ bias: nullish(z.boolean()) });

/** InternLM2, whose code came with the checkpoint: one wqkv, in which q, k and v stand by kv head; w1 is the gate, w3 up, w2 down. */
export function internlm2Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(internlm2Config, config);
  const bias = parsed.bias ?? true;
  return decoderSpec(parsed, generation, {
    family: "internlm2",
    prefix: "InternLM2",
    bias: { qkv: bias, output: bias },
    ...decoderShape(config, parsed, {
      eps: 1e-6,
      maxPositions: 2048,
      tied: false,
      rope: { base: 10000 },
    }),
    names: {
      embedding: "model.tok_embeddings",
      head: "output",
      rotary: null,
      attention: "attention",
      qkv: "wqkv",
      output: "wo",
      mlp: "feed_forward",
      gateUp: ["w1", "w3"],
      down: "w2",
      norms: { attn: "attention_norm", attnPost: null, mlp: "ffn_norm", mlpPost: null },
    },
    rules: { qkvByKvHead: true },
  });
}
