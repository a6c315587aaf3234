import { z } from "zod";
import { commonConfig, contradiction, nullish, unsupported, width } from "./config.ts";

/** Keys of the families whose module tree is Llama's or like it. */
export const decoderConfig = commonConfig.extend({
  num_key_value_heads: nullish(width),
  head_dim: nullish(width),
  rms_norm_eps: nullish(z.number().positive().max(1)),
  attention_bias: nullish(z.boolean()),
  pad_token_id: nullish(z.number().int()),
  mlp_bias: nullish(z.boolean()),
  sliding_window: nullish(
    z
      .number()
      .int()
      .nonnegative()
      .max(2 ** 31 - 1),
  ),
  use_sliding_window: nullish(z.boolean()),
  max_window_layers: nullish(z.number().int().nonnegative()),
  layer_types: nullish(z.array(z.string().max(64)).max(4096)),
});
export type DecoderConfig = z.infer<typeof decoderConfig>;

/** head_dim, or hidden_size / num_attention_heads where the configuration leaves it out. */
export function headWidth(config: DecoderConfig): number {
  if (config.head_dim !== undefined && config.head_dim !== null) return config.head_dim;
  const { hidden_size: hidden, num_attention_heads: heads } = config;
  if (hidden % heads !== 0) contradiction(`hidden_size ${hidden} is no multiple of num_attention_heads ${heads}`);
  return hidden / heads;
}

export type LayerType = "full_attention" | "sliding_attention";

/** layer_types, checked, or what `fallback` says of each block. */
export function layerTypes(config: DecoderConfig, fallback: (block: number) => LayerType): LayerType[] {
  return typesOfLayers(config, ["full_attention", "sliding_attention"], fallback);
}

/** The same where a family knows other types. */
export function typesOfLayers<T extends string>(
  config: DecoderConfig,
  known: readonly T[],
  fallback: (block: number) => T,
): T[] {
  const types = config.layer_types ?? null;
  if (types === null) return Array.from({ length: config.num_hidden_layers }, (_, block) => fallback(block));
  if (types.length !== config.num_hidden_layers) {
    contradiction(`layer_types has ${types.length} entries for num_hidden_layers ${config.num_hidden_layers}`);
  }
  return types.map((type) => known.find((one) => one === type) ?? unsupported("layer_types", type, known.join(", ")));
}

/** Windows by layer type: a query sees itself and the window - 1 keys before it. */
export function windowsByType(types: readonly LayerType[], window: number | null): (block: number) => number | null {
  if (window === null && types.includes("sliding_attention")) {
    contradiction("layer_types has sliding_attention but no sliding_window is in use");
  }
  return (block) => (types[block] === "sliding_attention" ? window : null);
}

/** Every `pattern`-th block sees all keys, the others a window. */
export function everyNthFull(pattern: number): (block: number) => LayerType {
  return (block) => ((block + 1) % pattern === 0 ? "full_attention" : "sliding_attention");
}

/**
 * Windows of Qwen2 and Qwen3: by layer_types where they are written out, else from block max_window_layers on, and only
 * with use_sliding_window.
 */
export function mixedWindows(config: DecoderConfig): (block: number) => number | null {
  const window = (config.use_sliding_window ?? false) ? (config.sliding_window ?? null) : null;
  const first = window === null ? Number.POSITIVE_INFINITY : (config.max_window_layers ?? 28);
  return windowsByType(
    layerTypes(config, (block) => (block >= first ? "sliding_attention" : "full_attention")),
    window,
  );
}
