import type { DecoderFamily } from "./decoder.ts";
import { type DecoderConfig, headWidth } from "./decoder-config.ts";
import { type RopeFamily, ropeFromConfig } from "./rope.ts";

/** What a family's configuration class takes where config.json leaves a key out. */
export interface DecoderDefaults {
  /** head_dim where the key is missing; absent, and where the key is null: hidden_size / num_attention_heads. */
  readonly headDim?: number;
  /** num_key_value_heads where the key is missing; absent, and where the key is null: as many as there are heads. */
  readonly kvHeads?: number;
  readonly eps: number;
  readonly maxPositions: number;
  readonly tied: boolean;
  readonly rope: Omit<RopeFamily, "headDim" | "maxPositions">;
}

type Shape = Pick<DecoderFamily, "headDim" | "kvHeads" | "eps" | "maxPositions" | "tied" | "rotary">;

/** The sizes that most families read under the same keys, with one rotary rule for all blocks. */
export function decoderShape(config: unknown, parsed: DecoderConfig, defaults: DecoderDefaults): Shape {
  const headDim =
    parsed.head_dim === undefined && defaults.headDim !== undefined ? defaults.headDim : headWidth(parsed);
  const maxPositions = parsed.max_position_embeddings ?? defaults.maxPositions;
  return {
    headDim,
    kvHeads:
      (parsed.num_key_value_heads === undefined ? defaults.kvHeads : parsed.num_key_value_heads) ??
      parsed.num_attention_heads,
    eps: parsed.rms_norm_eps ?? defaults.eps,
    maxPositions,
    tied: parsed.tie_word_embeddings ?? defaults.tied,
    rotary: [ropeFromConfig(config, { ...defaults.rope, headDim, maxPositions })],
  };
}
