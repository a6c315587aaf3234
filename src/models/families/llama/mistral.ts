import { contradiction, parseConfig } from "../../config.ts";
import { type DecoderFamily, decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import { ropeParametersOf, withRope } from "../../rope.ts";
import type { ModelSpec } from "../../spec.ts";
import { type TextPart, textPartSpec } from "../text-part.ts";

/** Mistral 7B and its like: Llama's layout with one attention window for all blocks (defaults of transformers' MistralConfig). */
export function mistralSpec(config: unknown, generation: unknown, part?: TextPart): ModelSpec {
  return mistralLike(config, generation, part ?? { family: "mistral", prefix: "Mistral" }, 4096);
}

/** Mistral 3 (Small 3.1, Ministral 3) with its vision tower, of which the text model is trained. */
export function mistral3Spec(config: unknown, generation: unknown): ModelSpec {
  const readers = { mistral: mistralSpec, ministral3: ministral3Spec };
  return textPartSpec(config, generation, { family: "mistral3", prefix: "Mistral3" }, readers);
}

const MINISTRAL3 = {
  head_dim: 128,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 262144,
} as const;
const MINISTRAL3_ROPE = {
  ...{ type: "yarn", rope_theta: 1000000, factor: 16, original_max_position_embeddings: 16384 },
  ...{ beta_fast: 32, beta_slow: 1, mscale: 1, mscale_all_dim: 1, llama_4_scaling_beta: 0.1 },
} as const;

/** Ministral 3: Mistral's blocks, with queries scaled by how far they stand (defaults of transformers' Ministral3Config). */
export function ministral3Spec(given: unknown, generation: unknown, part?: TextPart): ModelSpec {
  const config = withRope({ ...MINISTRAL3, ...Object(given) }, MINISTRAL3_ROPE);
  const { llama_4_scaling_beta: beta, original_max_position_embeddings: length } = ropeParametersOf(config);
  const scaled = typeof beta === "number" && beta !== 0;
  if (scaled && !Number.isInteger(length)) contradiction("llama_4_scaling_beta needs original_max_position_embeddings");
  const queryScale = scaled ? ({ beta, length: length!, first: 0, blocks: "all" } as const) : null;
  const own = part ?? { family: "ministral3", prefix: "Ministral3" };
  return mistralLike(config, generation, { ...own, rules: { queryScale } }, null);
}

function mistralLike(
  config: unknown,
  generation: unknown,
  own: TextPart & Pick<DecoderFamily, "rules">,
  /** sliding_window where the configuration names none. */
  ownWindow: number | null,
): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const window = parsed.sliding_window === undefined ? ownWindow : parsed.sliding_window;
  return decoderSpec(parsed, generation, {
    ...own,
    ...decoderShape(config, parsed, {
      kvHeads: 8,
      eps: 1e-6,
      maxPositions: 131072,
      tied: false,
      rope: { base: 10000 },
    }),
    slidingWindow: () => window,
  });
}
