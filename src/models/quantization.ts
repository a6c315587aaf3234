import { z } from "zod";
import { type FloatDtype, isFloatDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { INT8_THRESHOLD, isQuantType } from "../common/quantization.ts";
import { contradiction, nullish, parseConfig, unsupported } from "./config.ts";
import { expertLinears, ofExpert } from "./experts.ts";
import { matchNames } from "./python-regex.ts";
import type { BlockLayer, CheckpointQuantization, LinearSpec, ModelSpec } from "./spec.ts";

const dtypeName = z.string().max(32);

const bitsAndBytes = z.looseObject({
  quant_method: nullish(z.string().max(64)),
  load_in_4bit: nullish(z.boolean()),
  load_in_8bit: nullish(z.boolean()),
  bnb_4bit_quant_type: nullish(z.string().max(32)),
  bnb_4bit_use_double_quant: nullish(z.boolean()),
  bnb_4bit_compute_dtype: nullish(dtypeName),
  bnb_4bit_quant_storage: nullish(dtypeName),
  llm_int8_threshold: nullish(z.number().nonnegative().max(1e6)),
  llm_int8_skip_modules: nullish(z.array(z.string().max(1024)).max(65536)),
});

const configuration = z.looseObject({ quantization_config: nullish(z.looseObject({})) });

/**
 * What config.json says of the weights' quantisation, null if nothing. Errors: PL_MODEL_UNSUPPORTED for other methods than
 * bitsandbytes' and for packed storage other than bytes, PL_MODEL_CONFIG_INVALID.
 */
export function checkpointQuantization(config: unknown): CheckpointQuantization | null {
  const { quantization_config: section } = parseConfig(configuration, config);
  if (section === undefined || section === null) return null;
  const method = section["quant_method"] ?? "bitsandbytes";
  if (storesScaledWeights(method, section)) return null;
  if (method !== "bitsandbytes")
    unsupported("quantization_config.quant_method", method, '"bitsandbytes", "fp8", "compressed-tensors"');
  const parsed = parseConfig(bitsAndBytes, section, "config.json: quantization_config");
  const four = parsed.load_in_4bit ?? false;
  const eight = parsed.load_in_8bit ?? false;
  if (four === eight) {
    contradiction(`quantization_config sets ${four ? "both" : "neither"} of load_in_4bit and load_in_8bit`);
  }
  const skipModules = parsed.llm_int8_skip_modules ?? [];
  const computeDtype = floatDtype("bnb_4bit_compute_dtype", parsed.bnb_4bit_compute_dtype);
  if (eight) {
    return {
      settings: { method: "8bit", threshold: parsed.llm_int8_threshold ?? INT8_THRESHOLD },
      skipModules,
      computeDtype: null,
    };
  }
  const quantType = parsed.bnb_4bit_quant_type ?? "fp4";
  if (!isQuantType(quantType)) {
    return unsupported("quantization_config.bnb_4bit_quant_type", quantType, '"nf4", "fp4"');
  }
  const storage = (parsed.bnb_4bit_quant_storage ?? "uint8").replace(/^torch\./, "");
  if (storage !== "uint8") unsupported("quantization_config.bnb_4bit_quant_storage", storage, '"uint8"');
  const doubleQuant = parsed.bnb_4bit_use_double_quant ?? false;
  return { settings: { method: "4bit", quantType, doubleQuant }, skipModules, computeDtype };
}

const floatGroups = z.looseObject({
  config_groups: z.record(
    z.string(),
    z.looseObject({ weights: z.looseObject({ num_bits: z.number(), type: z.string().max(64) }) }),
  ),
});

/**
 * Whether weights are stored in e4m3 with scales, which are read as the bfloat16 that they stand for (formats/scaled-weights.ts).
 * Error: PL_MODEL_UNSUPPORTED for compressed-tensors' other forms.
 */
function storesScaledWeights(method: unknown, section: object): boolean {
  if (method === "fp8") return true;
  if (method !== "compressed-tensors") return false;
  const { config_groups: groups } = parseConfig(floatGroups, section, "config.json: quantization_config");
  for (const [name, { weights }] of Object.entries(groups)) {
    const form = `${weights.num_bits}-bit ${weights.type}`;
    if (form !== "8-bit float")
      unsupported(`quantization_config.config_groups.${name}.weights`, form, "8-bit float (e4m3)");
  }
  return true;
}

/** config.json without its quantization_config where that is MXFP4's, whose packed weights the family itself describes. */
export function mxfp4Quantization(config: unknown): { readonly rest: unknown; readonly mxfp4: boolean } {
  const { quantization_config: section } = parseConfig(configuration, config);
  if (section?.["quant_method"] !== "mxfp4") return { rest: config, mxfp4: false };
  return { rest: { ...(config as object), quantization_config: null }, mxfp4: true };
}

function floatDtype(key: string, named: string | null | undefined): FloatDtype | null {
  if (named === null || named === undefined) return null;
  const bare = named.replace(/^torch\./, "");
  if (isFloatDtype(bare)) return bare;
  return unsupported(`quantization_config.${key}`, named, "float32, bfloat16, float16");
}

/**
 * The linear layers of all blocks, those of each expert among them: what quantisation may touch. The output head, the embedding and routers
 * it never does, nor experts that the checkpoint holds packed.
 */
export function blockLinears(spec: ModelSpec): LinearSpec[] {
  return blocks(spec).flatMap((block) =>
    block.experts?.packed === null ? [...block.linears, ...expertLinears(block)] : block.linears,
  );
}

/**
 * Names that a pattern of llm_int8_skip_modules matches: as a regular expression their beginning, or as text their end (transformers
 * 5), or whole parts of them (transformers 4: "mlp" is all of it). Error: PL_CONFIG_INVALID for a pattern that can't be run.
 */
export function matchSkipPattern(pattern: string, names: readonly string[]): string[] {
  const begins = matchNames("llm_int8_skip_modules", pattern, names, { prefix: "^(?:", suffix: ")" });
  return names.filter(
    (name, index) => begins[index] !== null || name.endsWith(pattern) || `.${name}.`.includes(`.${pattern}.`),
  );
}

/**
 * Names of the block linears that a quantised load leaves alone.
 * Errors: PL_CONFIG_INVALID for a pattern that is no regular expression, or where only some of the layers that run as one product
 * (q, k and v; gate and up) are left out.
 */
export function skippedLinears(spec: ModelSpec, patterns: readonly string[]): Set<string> {
  const names = blockLinears(spec).map(({ name }) => name);
  const skipped = new Set(patterns.flatMap((pattern) => matchSkipPattern(pattern, names)));
  for (const block of blocks(spec)) {
    for (const group of PRODUCTS) refuseDivided(block.linears, group, skipped);
    const { experts } = block;
    for (let expert = 0; skipped.size > 0 && expert < (experts?.count ?? 0); expert += 1) {
      const own = experts!.linears.map((linear) => ({ ...linear, name: ofExpert(linear.name, expert) }));
      refuseDivided(own, ["gate", "up"], skipped);
    }
  }
  return skipped;
}

/** Roles that share their input and run as one product. */
const PRODUCTS = [
  ["q", "k", "v", "kv_a"],
  ["gate", "up"],
  ["delta_qkv", "delta_z", "delta_b", "delta_a"],
  ["delta_qkvz", "delta_ba"],
  ["q_a", "kv_a"],
] as const satisfies readonly (readonly LinearSpec["role"][])[];

function refuseDivided(linears: readonly LinearSpec[], roles: readonly string[], skipped: ReadonlySet<string>): void {
  const together = linears.filter(({ role }) => roles.includes(role)).map(({ name }) => name);
  const left = together.filter((name) => skipped.has(name));
  if (left.length === 0 || left.length === together.length) return;
  throw new PipeloraError(
    "PL_CONFIG_INVALID",
    `llm_int8_skip_modules leaves out ${left.join(", ")} but not ${together.filter((name) => !skipped.has(name)).join(", ")}, which run as one product.`,
    { hint: `Leave out all of ${together.join(", ")}, or none.` },
  );
}

function blocks(spec: ModelSpec): BlockLayer[] {
  return spec.layers.filter((layer) => layer.kind === "block");
}
