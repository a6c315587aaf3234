import { z } from "zod";
import { nullish, parseConfig, unsupported } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig, everyNthFull, type LayerType, layerTypes, windowsByType } from "../../decoder-config.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";
import { NORMS_BEHIND } from "./olmo2.ts";

const exaone4Config = decoderConfig.extend({
  sliding_window_pattern: nullish(z.union([z.string().min(1).max(4096), z.number().int().nonnegative().max(4096)])),
});

/**
 * EXAONE 4: norms of what attention and MLP add and of each head of q and k; where some blocks have a window, the others know no
 * positions (defaults of transformers' Exaone4Config).
 */
export function exaone4Spec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(exaone4Config, config);
  const window = parsed.sliding_window === undefined ? 4096 : parsed.sliding_window;
  const types = layerTypes(
    parsed,
    window === null ? () => "full_attention" : patterned(parsed.sliding_window_pattern ?? 4),
  );
  return decoderSpec(parsed, generation, {
    family: "exaone4",
    prefix: "Exaone4",
    ...decoderShape(config, parsed, { kvHeads: 32, eps: 1e-5, maxPositions: 2048, tied: false, rope: { base: 10000 } }),
    blockRotary: (block) => (window === null || types[block] === "sliding_attention" ? 0 : null),
    slidingWindow: windowsByType(types, window),
    names: { norms: NORMS_BEHIND, headNorms: ["q_norm", "k_norm"] },
  });
}

/** "LLLG" or the number of blocks of which the last sees all. */
function patterned(pattern: string | number): (block: number) => LayerType {
  if (typeof pattern === "number") return pattern === 0 ? () => "full_attention" : everyNthFull(pattern);
  if (!/^[LG]+$/.test(pattern)) unsupported("sliding_window_pattern", pattern, "a number, or a pattern of L and G");
  return (block) => (pattern[block % pattern.length] === "L" ? "sliding_attention" : "full_attention");
}
