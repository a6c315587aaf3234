import { z } from "zod";
import { type Dtype, FLOAT_DTYPES, isFloatDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { shown } from "../common/shown.ts";
import type { ComputeRules } from "./spec.ts";

/**
 * config.json is written by strangers: every number is bounded before it sizes anything. The bounds lie far above any
 * model this trainer could hold and far below what would exhaust memory by itself.
 */
export const extent = (max: number) => z.number().int().positive().max(max);
export const width = extent(1 << 20);
export const nullish = <T extends z.ZodType>(schema: T) => schema.nullable().optional();

const tokenIds = z.union([z.number().int(), z.array(z.number().int()).max(1024)]);

/** Keys that every family shares. Unknown keys are left alone: configurations carry many that change nothing here. */
export const commonConfig = z.looseObject({
  model_type: z.string().max(64),
  architectures: nullish(z.array(z.string().max(128)).max(16)),
  hidden_size: width,
  intermediate_size: width,
  num_hidden_layers: extent(4096),
  num_attention_heads: extent(4096),
  vocab_size: extent(1 << 26),
  max_position_embeddings: nullish(extent(2 ** 31)),
  tie_word_embeddings: nullish(z.boolean()),
  torch_dtype: nullish(z.string().max(32)),
  dtype: nullish(z.string().max(32)),
  eos_token_id: nullish(tokenIds),
});

const generationConfig = z.looseObject({ eos_token_id: nullish(tokenIds) });

export type CommonConfig = z.infer<typeof commonConfig>;

/** Checks `value` against a schema of config.json. Throws PL_MODEL_CONFIG_INVALID naming the first bad key. */
export function parseConfig<T extends z.ZodType>(schema: T, value: unknown, file = "config.json"): z.infer<T> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const key = issue === undefined || issue.path.length === 0 ? "its top level" : `"${issue.path.join(".")}"`;
  throw new PipeloraError("PL_MODEL_CONFIG_INVALID", `${file}: ${key}: ${issue?.message ?? "malformed"}.`, {
    hint: "Compare the file with the one published for this model.",
  });
}

/** Throws PL_MODEL_UNSUPPORTED for a setting that would change the model's numbers. */
export function unsupported(key: string, found: unknown, supported: string): never {
  throw new PipeloraError(
    "PL_MODEL_UNSUPPORTED",
    `config.json sets ${key} to ${shown(found)}; supported: ${supported}.`,
    { hint: "Use a checkpoint of a supported architecture; docs/reference/models.md lists them." },
  );
}

export function contradiction(message: string): never {
  throw new PipeloraError("PL_MODEL_CONFIG_INVALID", `config.json contradicts itself: ${message}.`, {
    hint: "Compare the file with the one published for this model.",
  });
}

/**
 * Keys that change a model's numbers, with the values that change nothing. A family says which of them it reads; any other that is set
 * is refused by name.
 */
const NUMBER_CHANGING: Readonly<Record<string, readonly unknown[]>> = {
  attention_dropout: [0],
  attn_dropout_prob: [0],
  emb_dropout_prob: [0],
  hidden_dropout: [0],
  residual_dropout: [0],
  resid_pdrop: [0],
  embd_pdrop: [0],
  partial_rotary_factor: [1],
  rotary_pct: [1],
  num_experts: [0],
  num_local_experts: [0],
  n_routed_experts: [0],
  moe_num_experts: [0],
  swiglu_limit: [7],
  router_jitter_noise: [0],
  output_router_logits: [false],
  attn_logit_softcapping: [],
  final_logit_softcapping: [],
  query_pre_attn_scalar: [],
  attention_multiplier: [],
  embedding_multiplier: [1],
  residual_multiplier: [1],
  logits_scaling: [1],
  logit_scale: [1],
  scale_emb: [1],
  scale_depth: [],
  dim_model_base: [],
  use_qk_norm: [false],
  use_parallel_residual: [false],
  use_bidirectional_attention: [false],
  is_causal: [true],
  per_layer_config: [],
  sparse_config: [],
  no_rope_layers: [],
  attention_chunk_size: [],
  attn_temperature_tuning: [false, 0],
  moe_layers: [],
  interleave_moe_layer_step: [],
  attn_output_gate: [false],
  clip_qkv: [],
  alibi: [false],
  kv_lora_rank: [],
  layer_norm_eps: [],
  use_cla: [false],
  post_layer_norm: [true],
  apply_residual_connection_post_layernorm: [false],
  pre_seq_len: [],
  prefix_projection: [false],
};

/** Throws PL_MODEL_UNSUPPORTED for a number-changing key that is set and not among those that the family `reads`. */
export function rejectForeignSettings(config: CommonConfig, reads: readonly string[] = []): void {
  for (const [key, neutral] of Object.entries(NUMBER_CHANGING)) {
    const value = config[key];
    if (value === undefined || value === null || reads.includes(key) || neutral.includes(value)) continue;
    unsupported(
      key,
      value,
      neutral.length === 0 ? "not for this family" : neutral.map((one) => JSON.stringify(one)).join(", "),
    );
  }
}

const ACTIVATIONS: Readonly<Record<string, ComputeRules["activation"]>> = {
  silu: "silu",
  swish: "silu",
  gelu: "gelu",
  gelu_pytorch_tanh: "gelu_tanh",
  gelu_new: "gelu_tanh",
};

/** The activation under one of transformers' names (ACT2FN). */
export function activationNamed(
  key: string,
  name: unknown,
  fallback: ComputeRules["activation"],
): ComputeRules["activation"] {
  if (name === undefined || name === null) return fallback;
  const found = typeof name === "string" && Object.hasOwn(ACTIVATIONS, name) ? ACTIVATIONS[name] : undefined;
  return found ?? unsupported(key, name, Object.keys(ACTIVATIONS).join(", "));
}

/** The checkpoint's dtype as the configuration names it ("bfloat16", "torch.bfloat16"), else `fallback`. */
export function configDtype(config: CommonConfig, fallback: Dtype): Dtype {
  const named = config.dtype ?? config.torch_dtype;
  if (named === null || named === undefined || named === "auto") return fallback;
  const bare = named.replace(/^torch\./, "");
  return isFloatDtype(bare) ? bare : unsupported("dtype", named, FLOAT_DTYPES.join(", "));
}

/** Ids that end generation, those of config.json first, without repeats. */
export function endTokenIds(config: CommonConfig, generation: unknown): number[] {
  const fromGeneration =
    generation === undefined ? undefined : parseConfig(generationConfig, generation, "generation_config.json");
  const ids = [config.eos_token_id, fromGeneration?.eos_token_id].flatMap((entry) => entry ?? []);
  for (const id of ids) {
    if (id < 0 || id >= config.vocab_size)
      contradiction(`eos_token_id ${id} is outside vocab_size ${config.vocab_size}`);
  }
  return [...new Set(ids)];
}
