import { parseConfig } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig, mixedWindows } from "../../decoder-config.ts";
import { LLAMA_NAMES } from "../../decoder-names.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";
import { type TextPart, textPartSpec } from "../text-part.ts";

/** Qwen2-VL with its vision tower, of which the text model is trained. */
export function qwen2VlSpec(config: unknown, generation: unknown): ModelSpec {
  const own = { family: "qwen2_vl", prefix: "Qwen2VL" };
  return textPartSpec(nested(config, "qwen2_vl_text"), generation, own, { qwen2_vl_text: qwen2Text });
}

/** Qwen2.5-VL with its vision tower, of which the text model is trained. */
export function qwen25VlSpec(config: unknown, generation: unknown): ModelSpec {
  const own = { family: "qwen2_5_vl", prefix: "Qwen2_5_VL" };
  return textPartSpec(nested(config, "qwen2_5_vl_text"), generation, own, { qwen2_5_vl_text: qwen2Text });
}

/** Qwen3-VL with its vision tower, of which the text model is trained. */
export function qwen3VlSpec(config: unknown, generation: unknown): ModelSpec {
  return textPartSpec(config, generation, { family: "qwen3_vl", prefix: "Qwen3VL" }, { qwen3_vl_text: qwen3Text });
}

/** The hub's files of Qwen2-VL and Qwen2.5-VL have the text model's keys beside vision_config. */
function nested(config: unknown, type: string): unknown {
  const given: Record<string, unknown> = Object(config);
  if ((given["text_config"] ?? null) !== null) return config;
  const { vision_config: _vision, model_type: family, architectures, ...text } = given;
  return { ...text, model_type: family, architectures, text_config: { ...text, model_type: type } };
}

/** Text stands at one position in all of mrope's parts. */
function plainRotary(config: unknown): unknown {
  const given: Record<string, unknown> = Object(config);
  const plain = (parameters: unknown) => {
    const { type, rope_type: named = type, ...rest }: Record<string, unknown> = Object(parameters);
    return { ...rest, rope_type: named === "mrope" ? "default" : named };
  };
  const keys = ["rope_scaling", "rope_parameters"].filter((key) => (given[key] ?? null) !== null);
  return { ...given, ...Object.fromEntries(keys.map((key) => [key, plain(given[key])])) };
}

/** Qwen2's blocks (defaults of transformers' Qwen2_5_VLTextConfig, Qwen2-VL's are the same). */
function qwen2Text(given: unknown, generation: unknown, part: TextPart): ModelSpec {
  const config = { max_window_layers: 80, ...Object(plainRotary(given)) };
  const parsed = parseConfig(decoderConfig, config);
  return decoderSpec(parsed, generation, {
    ...part,
    bias: { qkv: true },
    ...decoderShape(config, parsed, {
      ...{ kvHeads: 8, eps: 1e-5, maxPositions: 32768, tied: false },
      rope: { base: 1000000 },
    }),
    slidingWindow: mixedWindows(parsed),
  });
}

/** Qwen3's blocks (defaults of transformers' Qwen3VLTextConfig). */
function qwen3Text(given: unknown, generation: unknown, part: TextPart): ModelSpec {
  const config = plainRotary(given);
  const parsed = parseConfig(decoderConfig, config);
  const bias = parsed.attention_bias ?? false;
  const classes = { ...LLAMA_NAMES.classes, ...part.names?.classes, layer: "TextDecoderLayer", norm: "TextRMSNorm" };
  return decoderSpec(parsed, generation, {
    ...part,
    bias: { qkv: bias, output: bias },
    ...decoderShape(config, parsed, {
      ...{ headDim: 128, kvHeads: 32, eps: 1e-6, maxPositions: 128000, tied: false },
      rope: { base: 500000 },
    }),
    names: { headNorms: ["q_norm", "k_norm"], ...part.names, classes },
  });
}
