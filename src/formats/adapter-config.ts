import { z } from "zod";
import { PipeloraError } from "../common/errors.ts";
import { DEFAULT_EVA, type EvaConfig, type LoraSettings } from "../common/lora-settings.ts";

/** Every field of LoraConfig in peft 0.21 with its default: what adapter_config.json holds. */
const LORA_CONFIG_DEFAULTS = {
  alora_invocation_tokens: null,
  alpha_pattern: {},
  arrow_config: null,
  auto_mapping: null,
  base_model_name_or_path: null,
  bias: "none",
  corda_config: null,
  ensure_weight_tying: false,
  eva_config: null,
  exclude_modules: null,
  fan_in_fan_out: false,
  inference_mode: true,
  init_lora_weights: true,
  kasa_config: null,
  layer_replication: null,
  layers_pattern: null,
  layers_to_transform: null,
  loftq_config: {},
  lora_alpha: 8,
  lora_bias: false,
  lora_dropout: 0,
  lora_ga_config: null,
  megatron_config: null,
  megatron_core: "megatron.core",
  modules_to_save: null,
  monteclora_config: null,
  peft_type: "LORA",
  peft_version: "0.21.0",
  qalora_group_size: 16,
  r: 8,
  rank_pattern: {},
  revision: null,
  target_modules: null,
  target_parameters: null,
  task_type: "CAUSAL_LM",
  trainable_token_indices: null,
  use_bdlora: null,
  use_dora: false,
  use_qalora: false,
  use_rslora: false,
  velora_config: null,
} as const;

/** Fields whose effect on an adapter's numbers this trainer does not compute. */
const MUST_BE_DEFAULT = [
  "alora_invocation_tokens",
  "arrow_config",
  "kasa_config",
  "layer_replication",
  "lora_bias",
  "megatron_config",
  "monteclora_config",
  "use_bdlora",
  "use_qalora",
  "velora_config",
] as const;

/** Initialisations that change the base's weights too: such an adapter does not fit the plain base. */
const CHANGES_BASE = /^(pissa|olora|corda|loftq|lora_ga)/;

/** Initialisations by name that leave the base as it is. */
const KEPT = ["gaussian", "orthogonal", "eva"];

const strings = z.array(z.string().max(4096)).max(1 << 20);
const stringOrList = z.union([z.string().max(65536), strings]);
const patterns = (value: z.ZodNumber) => z.record(z.string().max(4096), value).nullable().optional();
const positive = z.number().positive();
const tokenIds = z.array(z.number().int().nonnegative()).max(1 << 20);
const schema = z.looseObject({
  peft_type: z.literal("LORA"),
  r: z
    .number()
    .int()
    .positive()
    .max(1 << 20),
  lora_alpha: positive,
  lora_dropout: z.number().min(0).lt(1).nullable().optional(),
  target_modules: stringOrList.nullable().optional(),
  target_parameters: strings.nullable().optional(),
  exclude_modules: stringOrList.nullable().optional(),
  layers_to_transform: z
    .union([z.number().int(), z.array(z.number().int()).max(1 << 20)])
    .nullable()
    .optional(),
  layers_pattern: stringOrList.nullable().optional(),
  rank_pattern: patterns(positive.int().max(1 << 20)),
  alpha_pattern: patterns(positive),
  use_rslora: z.boolean().nullable().optional(),
  modules_to_save: strings.nullable().optional(),
  init_lora_weights: z
    .union([z.boolean(), z.string().max(64)])
    .nullable()
    .optional(),
  bias: z.enum(["none", "all", "lora_only"]).nullable().optional(),
  use_dora: z.boolean().nullable().optional(),
  trainable_token_indices: z
    .union([tokenIds, z.record(z.string().max(4096), tokenIds)])
    .nullable()
    .optional(),
  eva_config: z
    .looseObject({
      rho: z.number().min(1).optional(),
      tau: z.number().min(0).max(1).optional(),
      use_label_mask: z.boolean().optional(),
      label_mask_value: z.number().int().optional(),
      whiten: z.boolean().optional(),
      adjust_scaling_factors: z.boolean().optional(),
    })
    .nullable()
    .optional(),
  ensure_weight_tying: z.literal(false).nullable().optional(),
  base_model_name_or_path: z.string().max(4096).nullable().optional(),
});

export interface ParsedAdapterConfig {
  readonly settings: LoraSettings;
  readonly baseModel: string | null;
  /** Settings that were ignored because they do not change the adapter's numbers: one sentence each. */
  readonly warnings: readonly string[];
}

/** Reads LoRA settings out of adapter_config.json. Unknown keys warn. Error: PL_ADAPTER_INVALID. */
export function parseAdapterConfig(path: string, value: unknown): ParsedAdapterConfig {
  const result = schema.safeParse(value);
  if (!result.success) {
    const issue = result.error.issues[0];
    throw invalid(path, `"${issue?.path.join(".")}": ${issue?.message ?? "malformed"}`);
  }
  const config = result.data;
  for (const key of MUST_BE_DEFAULT) {
    const found = config[key];
    if (found !== undefined && found !== null && found !== false) {
      throw invalid(path, `it uses ${key}, which is not supported`);
    }
  }
  const targetModules = config.target_modules ?? null;
  // peft writes an empty list if no modules were named.
  const named = config.target_parameters ?? [];
  const targetParameters = named.length > 0 ? named : null;
  if (targetModules === null && targetParameters === null) {
    throw invalid(path, "it has neither target_modules nor target_parameters");
  }
  const init = config.init_lora_weights ?? true;
  if (typeof init === "string" && CHANGES_BASE.test(init)) {
    throw invalid(path, `it was initialised with "${init}", which changes the base weights`);
  }
  const warnings = Object.keys(config)
    .filter((key) => !Object.hasOwn(LORA_CONFIG_DEFAULTS, key))
    .map((key) => `${path}: unknown key "${key}" is ignored.`);
  return {
    settings: {
      r: config.r,
      alpha: config.lora_alpha,
      dropout: config.lora_dropout ?? 0,
      targetModules: targetModules ?? [],
      targetParameters,
      excludeModules: config.exclude_modules ?? null,
      layersToTransform: config.layers_to_transform ?? null,
      layersPattern: config.layers_pattern ?? null,
      rankPattern: config.rank_pattern ?? {},
      alphaPattern: config.alpha_pattern ?? {},
      useRslora: config.use_rslora ?? false,
      useDora: config.use_dora ?? false,
      modulesToSave: (config.modules_to_save ?? []).length > 0 ? config.modules_to_save! : null,
      bias: config.bias ?? "none",
      trainableTokenIndices: config.trainable_token_indices ?? null,
      initLoraWeights: typeof init === "boolean" || KEPT.includes(init) ? init : true,
      evaConfig: init === "eva" ? evaConfigOf(config.eva_config ?? {}) : null,
    },
    baseModel: config.base_model_name_or_path ?? null,
    warnings,
  };
}

/** adapter_config.json as peft writes it: every field, sorted, indented by 2, ASCII, no newline at the end. */
export function adapterConfigText(
  settings: LoraSettings,
  targetModules: string | readonly string[],
  baseModel: string | null,
): string {
  const config: Record<string, unknown> = {
    ...LORA_CONFIG_DEFAULTS,
    alpha_pattern: settings.alphaPattern,
    base_model_name_or_path: baseModel,
    bias: settings.bias,
    eva_config: settings.evaConfig === null ? null : evaConfigJson(settings.evaConfig),
    exclude_modules: settings.excludeModules,
    init_lora_weights: settings.initLoraWeights,
    layers_pattern: settings.layersPattern,
    layers_to_transform: settings.layersToTransform,
    lora_alpha: settings.alpha,
    lora_dropout: settings.dropout,
    modules_to_save: settings.modulesToSave,
    r: settings.r,
    rank_pattern: settings.rankPattern,
    target_modules: targetModules,
    target_parameters: settings.targetParameters,
    trainable_token_indices: settings.trainableTokenIndices,
    use_dora: settings.useDora,
    use_rslora: settings.useRslora,
  };
  return JSON.stringify(config, null, 2)
    .replace(/("lora_dropout": \d+)(?=,?\n)/, "$1.0")
    .replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** peft's EvaConfig; what it leaves out is as there. */
export function evaConfigOf(given: {
  readonly rho?: number | undefined;
  readonly tau?: number | undefined;
  readonly use_label_mask?: boolean | undefined;
  readonly label_mask_value?: number | undefined;
  readonly whiten?: boolean | undefined;
  readonly adjust_scaling_factors?: boolean | undefined;
}): EvaConfig {
  return {
    rho: given.rho ?? DEFAULT_EVA.rho,
    tau: given.tau ?? DEFAULT_EVA.tau,
    useLabelMask: given.use_label_mask ?? DEFAULT_EVA.useLabelMask,
    labelMaskValue: given.label_mask_value ?? DEFAULT_EVA.labelMaskValue,
    whiten: given.whiten ?? DEFAULT_EVA.whiten,
    adjustScalingFactors: given.adjust_scaling_factors ?? DEFAULT_EVA.adjustScalingFactors,
  };
}

function evaConfigJson(eva: EvaConfig) {
  return {
    adjust_scaling_factors: eva.adjustScalingFactors,
    label_mask_value: eva.labelMaskValue,
    rho: eva.rho,
    tau: eva.tau,
    use_label_mask: eva.useLabelMask,
    whiten: eva.whiten,
  };
}

function invalid(path: string, message: string): PipeloraError {
  return new PipeloraError("PL_ADAPTER_INVALID", `${path}: ${message}.`, {
    hint: "Give the folder of a LoRA adapter as peft saves it (adapter_config.json and adapter_model.safetensors).",
  });
}
