import { contradiction, parseConfig } from "../config.ts";
import { decoderSpec } from "../decoder.ts";
import { layerTypes, windowsByType } from "../decoder-config.ts";
import { decoderShape } from "../decoder-shape.ts";
import { mxfp4Quantization } from "../quantization.ts";
import { withRope } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";
import { expertCounts, MOE_KEYS, moeConfig } from "./moe-config.ts";

/** GptOssExperts has these as numbers of its own. */
const CLAMP = { limit: 7, alpha: 1.702 } as const;

const YARN = {
  ...{ rope_type: "yarn", factor: 32, beta_fast: 32, beta_slow: 1 },
  ...{ truncate: false, original_max_position_embeddings: 4096 },
} as const;

/**
 * gpt-oss: attention with sinks and biases, every other block windowed, and experts with biases and a clamped gate in every block (defaults
 * of transformers' GptOssConfig). Experts in MXFP4 stay as the checkpoint packs them.
 */
export function gptOssSpec(given: unknown, generation: unknown): ModelSpec {
  const config = withRope({ head_dim: 64, ...Object(given) }, YARN);
  const { rest, mxfp4 } = mxfp4Quantization(config);
  const parsed = parseConfig(moeConfig, rest);
  const bias = parsed.attention_bias ?? true;
  const { count, chosen } = expertCounts(parsed, { count: 128, chosen: 4 });
  if (mxfp4 && (parsed.hidden_size % 32 !== 0 || parsed.intermediate_size % 32 !== 0)) {
    contradiction(
      `MXFP4 has blocks of 32 values; hidden_size is ${parsed.hidden_size}, intermediate_size ${parsed.intermediate_size}`,
    );
  }
  return decoderSpec(parsed, generation, {
    family: "gpt_oss",
    prefix: "GptOss",
    bias: { qkv: bias, output: bias },
    ...decoderShape(rest, parsed, {
      kvHeads: 8,
      eps: 1e-5,
      maxPositions: 131072,
      tied: false,
      rope: { base: 150000 },
    }),
    slidingWindow: windowsByType(
      layerTypes(parsed, (block) => (block % 2 === 0 ? "sliding_attention" : "full_attention")),
      parsed.sliding_window === undefined ? 128 : parsed.sliding_window,
    ),
    sinks: "sinks",
    experts: () => ({
      count,
      ffn: parsed.intermediate_size,
      router: "router",
      routerBias: true,
      route: { chosen, score: "softmax_of_chosen", normalise: false },
      leaves: ["gate_up_proj", "down_proj"],
      bias: true,
      transposed: true,
      storedAtOnce: true,
      packed: mxfp4 ? "mxfp4" : null,
      clamp: CLAMP,
      interleaved: true,
      routerFirst: true,
    }),
    reads: MOE_KEYS,
  });
}
