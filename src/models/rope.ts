import { z } from "zod";
import { contradiction, nullish, parseConfig, unsupported } from "./config.ts";
import type { RopeSpec } from "./spec.ts";

/**
 * Rotary frequencies under transformers' rules (modeling_rope_utils): default, linear, llama3 (Llama 3.1) and
 * yarn (Peng et al., 2023). Read from transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).
 * Values are rounded to float32 where torch rounds them.
 */
const number = z.number().positive().max(1e12);
const ropeParameters = z.looseObject({
  rope_type: nullish(z.string().max(64)),
  type: nullish(z.string().max(64)),
  rope_theta: nullish(number),
  factor: nullish(number),
  low_freq_factor: nullish(number),
  high_freq_factor: nullish(number),
  original_max_position_embeddings: nullish(number),
  attention_factor: nullish(number),
  beta_fast: nullish(number),
  beta_slow: nullish(number),
  mscale: nullish(number),
  mscale_all_dim: nullish(number),
  truncate: nullish(z.boolean()),
  partial_rotary_factor: nullish(z.number()),
});
type RopeParameters = z.infer<typeof ropeParameters>;

const ropeConfig = z.looseObject({
  rope_theta: nullish(number),
  rope_scaling: nullish(ropeParameters),
  rope_parameters: nullish(ropeParameters),
});

/** Keys that each rule cannot do without. */
const REQUIRED: Readonly<Record<string, readonly (keyof RopeParameters)[]>> = {
  default: [],
  linear: ["factor"],
  llama3: ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
  yarn: [],
};

export function ropeFromConfig(config: unknown, headDim: number, defaultBase: number, maxPositions: number): RopeSpec {
  const parsed = parseConfig(ropeConfig, config);
  const parameters = parsed.rope_parameters ?? parsed.rope_scaling ?? {};
  const type = parameters.rope_type ?? parameters.type ?? "default";
  const base = parameters.rope_theta ?? parsed.rope_theta ?? defaultBase;
  if (parameters.partial_rotary_factor !== null && (parameters.partial_rotary_factor ?? 1) !== 1) {
    unsupported("rope_parameters.partial_rotary_factor", parameters.partial_rotary_factor, "1");
  }
  const required = Object.hasOwn(REQUIRED, type) ? REQUIRED[type] : undefined;
  if (required === undefined) unsupported("rope_type", type, Object.keys(REQUIRED).join(", "));
  for (const key of required) {
    if (parameters[key] === null || parameters[key] === undefined) {
      contradiction(`rotary scaling "${type}" needs "${key}"`);
    }
  }
  const plain = inverseFrequencies(base, headDim);
  const rope = { base, attentionScaling: 1, qwenLong: null };
  switch (type) {
    case "linear":
      return { ...rope, invFreq: plain.map((frequency) => Math.fround(frequency / (parameters.factor ?? 1))) };
    case "llama3":
      return { ...rope, invFreq: llama3(plain, parameters) };
    case "yarn":
      return { ...rope, ...yarn(base, headDim, maxPositions, parameters) };
    default:
      return { ...rope, invFreq: plain };
  }
}

/** base^(-2i / headDim) for i = 0 … headDim / 2 - 1, in float32. */
export function inverseFrequencies(base: number, headDim: number): number[] {
  return positionFrequencies(base, headDim).map((frequency) => Math.fround(1 / frequency));
}

function positionFrequencies(base: number, headDim: number): number[] {
  return Array.from({ length: headDim / 2 }, (_, i) => Math.fround(base ** Math.fround((2 * i) / headDim)));
}

function llama3(plain: readonly number[], parameters: RopeParameters): number[] {
  const factor = parameters.factor ?? 1;
  const low = parameters.low_freq_factor ?? 1;
  const high = parameters.high_freq_factor ?? 1;
  const original = parameters.original_max_position_embeddings ?? 1;
  if (high <= low) contradiction(`high_freq_factor ${high} is not above low_freq_factor ${low}`);
  return plain.map((frequency) => {
    const wavelength = (2 * Math.PI) / frequency;
    if (wavelength > original / low) return Math.fround(frequency / factor);
    if (wavelength < original / high) return frequency;
    const smooth = (original / wavelength - low) / (high - low);
    return Math.fround(((1 - smooth) * frequency) / factor + smooth * frequency);
  });
}

function yarn(
  base: number,
  headDim: number,
  maxPositions: number,
  parameters: RopeParameters,
): Pick<RopeSpec, "invFreq" | "attentionScaling"> {
  const original = parameters.original_max_position_embeddings ?? maxPositions;
  const factor = parameters.factor ?? maxPositions / original;
  const turnsToDimension = (turns: number) =>
    (headDim * Math.log(original / (turns * 2 * Math.PI))) / (2 * Math.log(base));
  let low = turnsToDimension(parameters.beta_fast ?? 32);
  let high = turnsToDimension(parameters.beta_slow ?? 1);
  if (parameters.truncate ?? true) {
    low = Math.floor(low);
    high = Math.ceil(high);
  }
  low = Math.max(low, 0);
  high = Math.min(high, headDim - 1);
  if (high === low) high += 0.001;
  const invFreq = positionFrequencies(base, headDim).map((frequency, i) => {
    const kept = 1 - Math.min(1, Math.max(0, (i - low) / (high - low)));
    return Math.fround((1 / (factor * frequency)) * (1 - kept) + (1 / frequency) * kept);
  });
  return { invFreq, attentionScaling: parameters.attention_factor ?? yarnAttention(factor, parameters) };
}

function yarnAttention(factor: number, parameters: RopeParameters): number {
  const scale = (mscale: number) => (factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1);
  const { mscale, mscale_all_dim: allDim } = parameters;
  return typeof mscale === "number" && typeof allDim === "number" ? scale(mscale) / scale(allDim) : scale(1);
}
