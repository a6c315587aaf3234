import { parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";
import { expertCounts, MOE_KEYS, moeConfig } from "../moe-config.ts";

/** Mixtral: Mistral with experts in every block, under names of their own in checkpoints (defaults of transformers' MixtralConfig). */
export function mixtralSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(moeConfig, config);
  const { count, chosen } = expertCounts(parsed, { count: 8, chosen: 2 });
  return decoderSpec(parsed, generation, {
    family: "mixtral",
    prefix: "Mixtral",
    ...decoderShape(config, parsed, {
      kvHeads: 8,
      eps: 1e-5,
      maxPositions: 131072,
      tied: false,
      rope: { base: 1000000 },
    }),
    slidingWindow: () => parsed.sliding_window ?? null,
    experts: () => ({
      count,
      ffn: parsed.intermediate_size,
      router: "gate",
      route: { chosen, score: "softmax", normalise: true },
      leaves: ["w1", "w3", "w2"],
      stored: "block_sparse_moe",
      routerFirst: true,
    }),
    reads: MOE_KEYS,
  });
}
