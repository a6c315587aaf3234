import { contradiction, parseConfig } from "../config.ts";
import { type DecoderFamily, decoderSpec } from "../decoder.ts";
import { decoderConfig, headWidth } from "../decoder-config.ts";
import { ropeFromConfig, ropeParametersOf } from "../rope.ts";
import type { ModelSpec } from "../spec.ts";

/** Mistral 7B and its like: Llama's layout with one attention window for all blocks (defaults of transformers' MistralConfig). */
export function mistralSpec(config: unknown, generation: unknown): ModelSpec {
  return mistralLike(config, generation, { family: "mistral", prefix: "Mistral" });
}

/** Ministral 3: Mistral's blocks, with queries scaled by how far they stand (defaults of transformers' Ministral3Config). */
export function ministral3Spec(config: unknown, generation: unknown): ModelSpec {
  const { llama_4_scaling_beta: beta, original_max_position_embeddings: length } = ropeParametersOf(config);
  const scaled = typeof beta === "number" && beta !== 0;
  if (scaled && !Number.isInteger(length)) contradiction("llama_4_scaling_beta needs original_max_position_embeddings");
  const queryScale = scaled ? { beta, length: length! } : null;
  return mistralLike(config, generation, { family: "ministral3", prefix: "Ministral3", rules: { queryScale } });
}

function mistralLike(
  config: unknown,
  generation: unknown,
  own: Pick<DecoderFamily, "family" | "prefix" | "rules">,
): ModelSpec {
  const parsed = parseConfig(decoderConfig, config);
  const window =
    parsed.sliding_window === undefined && own.family === "mistral" ? 4096 : (parsed.sliding_window ?? null);
  const headDim = headWidth(parsed);
  const maxPositions = parsed.max_position_embeddings ?? 131072;
  return decoderSpec(parsed, generation, {
    ...own,
    headDim,
    kvHeads: parsed.num_key_value_heads ?? 8,
    eps: parsed.rms_norm_eps ?? 1e-6,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [ropeFromConfig(config, { headDim, base: 10000, maxPositions })],
    slidingWindow: () => window,
  });
}
