import { z } from "zod";
import { contradiction, nullish, parseConfig, unsupported } from "./config.ts";
import type { RopeSpec } from "./spec.ts";

/**
 * Rotary frequencies under transformers' rules (modeling_rope_utils): default, linear, llama3 (Llama 3.1), yarn (Peng et al., 2023)
 * and longrope (Ding et al., 2024), and dynamic NTK. Read from transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).
 * Values are rounded to float32 where torch rounds them.
 */
const number = z.number().positive().max(1e12);
/** 0 is no value, as Python's `or` has it. */
const orNothing = z.number().min(0).max(1e12);
const ropeParameters = z.looseObject({
  rope_type: nullish(z.string().max(64)),
  type: nullish(z.string().max(64)),
  rope_theta: nullish(number),
  factor: nullish(number),
  low_freq_factor: nullish(number),
  high_freq_factor: nullish(number),
  original_max_position_embeddings: nullish(number),
  attention_factor: nullish(number),
  beta_fast: nullish(orNothing),
  beta_slow: nullish(orNothing),
  mscale: nullish(orNothing),
  mscale_all_dim: nullish(orNothing),
  truncate: nullish(z.boolean()),
  partial_rotary_factor: nullish(z.number().positive().max(1)),
  short_factor: nullish(z.array(number).max(1 << 12)),
  long_factor: nullish(z.array(number).max(1 << 12)),
  alpha: nullish(number),
  llama_4_scaling_beta: nullish(z.number()),
});
type RopeParameters = z.infer<typeof ropeParameters>;

const ropeConfig = z.looseObject({
  rope_theta: nullish(number),
  rope_scaling: nullish(ropeParameters),
  rope_parameters: nullish(z.looseObject({})),
  partial_rotary_factor: nullish(z.number().positive().max(1)),
  max_position_embeddings: nullish(number),
  original_max_position_embeddings: nullish(number),
});

/** Keys that each rule cannot do without. */
const REQUIRED: Readonly<Record<string, readonly (keyof RopeParameters)[]>> = {
  default: [],
  linear: ["factor"],
  llama3: ["factor", "low_freq_factor", "high_freq_factor"],
  yarn: [],
  longrope: ["short_factor", "long_factor"],
  dynamic: ["factor"],
};

/** Rules that know the length which the model was first trained on, under each of their names. */
const TRAINED_LENGTH = ["llama3", "yarn", "longrope", "su"];

/** What a family's positions are beyond config.json. */
export interface RopeFamily {
  readonly headDim: number;
  /** rope_theta where the configuration names none. */
  readonly base: number;
  readonly maxPositions: number;
  /** partial_rotary_factor where the configuration names none; absent: the family turns whole heads, and no other value is taken. */
  readonly partial?: number;
  /** original_max_position_embeddings where the configuration has none outside of its rotary parameters. */
  readonly original?: number;
  /** The one scaling is longrope (Phi-3: "su" is its first name, and its "yarn" was longrope too). */
  readonly longropeAlone?: boolean;
  /** dynamic with alpha: one base for all lengths (Hunyuan). */
  readonly alpha?: boolean;
  /** Of rope_parameters by layer type (Gemma 3): which. */
  readonly layerType?: string;
  /** rope_scaling is another layer type's: it does not count here. */
  readonly unscaled?: boolean;
}

export function ropeFromConfig(config: unknown, family: RopeFamily): RopeSpec {
  const { headDim, maxPositions } = family;
  const parsed = parseConfig(ropeConfig, config);
  const parameters = ropeParametersOf(config, family);
  const type = parameters.rope_type ?? parameters.type ?? "default";
  const base = parameters.rope_theta ?? (family.unscaled === true ? null : parsed.rope_theta) ?? family.base;
  const alone = family.longropeAlone === true;
  const rule = alone && ["su", "yarn"].includes(type) ? "longrope" : type;
  const known = alone ? ["default", "longrope"] : Object.keys(REQUIRED);
  if (!known.includes(rule)) unsupported("rope_type", type, known.join(", "));
  const fixed = rule === "dynamic" && typeof parameters.alpha === "number" ? parameters.alpha : null;
  if (fixed !== null && family.alpha !== true) unsupported("rope_scaling.alpha", fixed, "not for this family");
  for (const key of fixed === null ? REQUIRED[rule]! : []) {
    if (parameters[key] === null || parameters[key] === undefined) {
      contradiction(`rotary scaling "${type}" needs "${key}"`);
    }
  }
  const turning = rotaryColumns(headDim, parameters.partial_rotary_factor ?? parsed.partial_rotary_factor, family);
  const plain = inverseFrequencies(base, turning);
  const rope = { base, attentionScaling: 1, long: null, dynamic: null };
  const original = parameters.original_max_position_embeddings ?? maxPositions;
  switch (rule) {
    case "linear":
      return { ...rope, invFreq: plain.map((frequency) => Math.fround(frequency / (parameters.factor ?? 1))) };
    case "llama3":
      return { ...rope, invFreq: llama3(plain, original, parameters) };
    case "yarn":
      return { ...rope, ...yarn(base, turning, { original, maxPositions }, parameters) };
    case "dynamic":
      return { ...rope, ...dynamicNtk(base, turning, maxPositions, plain, fixed, parameters.factor ?? 1) };
    case "longrope":
      return { ...rope, ...longrope(base, turning, { original, maxPositions }, parameters) };
    default:
      return { ...rope, invFreq: plain };
  }
}

/**
 * rope_parameters (of the layer type, where it names types) or rope_scaling, checked. Where a configuration has both, transformers 5 takes
 * rope_scaling and drops rope_parameters with the base in it (Gemma 3: rope_scaling goes over those of its full attention).
 */
export function ropeParametersOf(config: unknown, family: Partial<RopeFamily> = {}): RopeParameters {
  const parameters = chosenParameters(config, family);
  const type = parameters.rope_type ?? parameters.type ?? "default";
  if (family.layerType !== undefined || !TRAINED_LENGTH.includes(type)) return parameters;
  // A key beside the parameters goes before one within them.
  const outside = parseConfig(ropeConfig, config).original_max_position_embeddings ?? family.original;
  return typeof outside === "number" ? { ...parameters, original_max_position_embeddings: outside } : parameters;
}

function chosenParameters(config: unknown, { layerType, unscaled }: Partial<RopeFamily>): RopeParameters {
  const { rope_parameters: given, rope_scaling: scaling } = parseConfig(ropeConfig, config);
  const scaled = unscaled !== true && Object.keys(scaling ?? {}).length > 0;
  if (scaled && (layerType === undefined || isEmpty(given))) return scaling!;
  if (given === null || given === undefined) return {};
  const nested = layerType === undefined ? undefined : given[layerType];
  const byType = Object.values(given).some(
    (value) => typeof value === "object" && value !== null && !Array.isArray(value),
  );
  if (byType && nested === undefined) contradiction(`rope_parameters has nothing for "${layerType ?? "rope_type"}"`);
  const parameters = parseConfig(ropeParameters, nested ?? given, "config.json: rope_parameters");
  return scaled ? { ...parameters, ...scaling } : parameters;
}

/** The configuration with a family's own rotary parameters where it names none. */
export function withRope<T extends object>(config: T, own: object): T | (T & { rope_parameters: object }) {
  const { rope_parameters: given, rope_scaling: scaling } = parseConfig(ropeConfig, config);
  return (given ?? null) === null && isEmpty(scaling) ? { ...config, rope_parameters: own } : config;
}

const isEmpty = (value: object | null | undefined) => Object.keys(value ?? {}).length === 0;

/** What of a configuration's positions is read otherwise than it may look: a sentence each. */
export function ropeRemarks(config: unknown): string[] {
  const { rope_parameters: given, rope_scaling: scaling, rope_theta: base } = parseConfig(ropeConfig, config);
  if (isEmpty(given) || isEmpty(scaling)) return [];
  const full = given!["full_attention"];
  const differs = (value: unknown, kept: unknown) => JSON.stringify(value) !== JSON.stringify(kept);
  const lost =
    typeof full === "object" && full !== null
      ? Object.entries(full).filter(([key, value]) => key in scaling! && differs(value, scaling![key]))
      : Object.entries(given!).filter(([key, value]) =>
          differs(value, scaling![key] ?? (key === "rope_theta" ? base : undefined)),
        );
  if (lost.length === 0) return [];
  const named = lost.map(([key, value]) => `${key} ${JSON.stringify(value)}`).join(", ");
  return [
    `config.json has rope_scaling beside rope_parameters: as in transformers 5 rope_scaling counts, and of rope_parameters is lost ${named}`,
  ];
}

/** Columns of a head that turn: an even number. */
function rotaryColumns(headDim: number, given: number | null | undefined, family: RopeFamily): number {
  if (family.partial === undefined && (given ?? 1) !== 1) unsupported("partial_rotary_factor", given, "1");
  const columns = Math.trunc(headDim * (given ?? family.partial ?? 1));
  if (columns < 2 || columns % 2 !== 0) {
    contradiction(`partial_rotary_factor ${given} of head_dim ${headDim} gives ${columns} columns, no even number`);
  }
  return columns;
}

/** base^(-2i / headDim) for i = 0 … headDim / 2 - 1, in float32. */
export function inverseFrequencies(base: number, headDim: number): number[] {
  return positionFrequencies(base, headDim).map((frequency) => Math.fround(1 / frequency));
}

function positionFrequencies(base: number, headDim: number): number[] {
  return Array.from({ length: headDim / 2 }, (_, i) => Math.fround(base ** Math.fround((2 * i) / headDim)));
}

function llama3(plain: readonly number[], original: number, parameters: RopeParameters): number[] {
  const factor = parameters.factor ?? 1;
  const low = parameters.low_freq_factor ?? 1;
  const high = parameters.high_freq_factor ?? 1;
  // Equal in Llama 4's files: no wavelength lies between.
  if (high < low) contradiction(`high_freq_factor ${high} is below low_freq_factor ${low}`);
  return plain.map((frequency) => {
    const wavelength = (2 * Math.PI) / frequency;
    if (wavelength > original / low) return Math.fround(frequency / factor);
    if (wavelength < original / high || high === low) return frequency;
    const smooth = (original / wavelength - low) / (high - low);
    return Math.fround(((1 - smooth) * frequency) / factor + smooth * frequency);
  });
}

/** Tokens that the model was first trained on, and that it takes now. */
interface Lengths {
  readonly original: number;
  readonly maxPositions: number;
}

function yarn(
  base: number,
  headDim: number,
  { original, maxPositions }: Lengths,
  parameters: RopeParameters,
): Pick<RopeSpec, "invFreq" | "attentionScaling"> {
  const factor = parameters.factor ?? maxPositions / original;
  const turnsToDimension = (turns: number) =>
    (headDim * Math.log(original / (turns * 2 * Math.PI))) / (2 * Math.log(base));
  let low = turnsToDimension(parameters.beta_fast || 32);
  let high = turnsToDimension(parameters.beta_slow || 1);
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

/**
 * What DeepSeek multiplies scores by beside 1 / sqrt(width) (yarn_apply_mscale): the square of 0.1 mscale_all_dim ln(factor) + 1, 1 without scaling.
 */
export function latentScoreFactor(config: unknown): number {
  const { rope_type: type, type: old, mscale_all_dim: allDim, factor } = ropeParametersOf(config);
  if ((type ?? old ?? "default") === "default" || typeof allDim !== "number" || typeof factor !== "number") return 1;
  return factor <= 1 ? 1 : (0.1 * allDim * Math.log(factor) + 1) ** 2;
}

function yarnAttention(factor: number, parameters: RopeParameters): number {
  const scale = (mscale: number) => (factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1);
  const { mscale, mscale_all_dim: allDim } = parameters;
  return mscale && allDim ? scale(mscale) / scale(allDim) : scale(1);
}

/** One alpha for all lengths, or a factor from which each length past the trained one takes its own. */
function dynamicNtk(
  base: number,
  headDim: number,
  maxPositions: number,
  plain: readonly number[],
  alpha: number | null,
  factor: number,
): Pick<RopeSpec, "invFreq" | "dynamic"> {
  if (headDim < 4) contradiction(`rotary scaling "dynamic" needs 4 columns, there are ${headDim}`);
  if (alpha !== null) {
    return { invFreq: inverseFrequencies(base * alpha ** (headDim / (headDim - 2)), headDim), dynamic: null };
  }
  return { invFreq: plain, dynamic: { from: maxPositions, factor } };
}

/** Factors on each frequency, one list for sequences up to the original length, one for longer ones. */
function longrope(
  base: number,
  headDim: number,
  { original, maxPositions }: Lengths,
  parameters: RopeParameters,
): Pick<RopeSpec, "invFreq" | "attentionScaling" | "long"> {
  const factor = parameters.factor ?? maxPositions / original;
  const frequencies = (key: "short_factor" | "long_factor") => {
    const factors = parameters[key]!;
    if (factors.length !== headDim / 2) {
      contradiction(`rotary scaling "longrope": ${key} has ${factors.length} entries, expected ${headDim / 2}`);
    }
    return positionFrequencies(base, headDim).map((frequency, i) =>
      Math.fround(1 / Math.fround(factors[i]! * frequency)),
    );
  };
  return {
    invFreq: frequencies("short_factor"),
    attentionScaling:
      parameters.attention_factor ?? (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original))),
    long: { from: original, invFreq: frequencies("long_factor") },
  };
}
