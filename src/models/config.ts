import { z } from "zod";
import { type Dtype, FLOAT_DTYPES, isFloatDtype } from "../common/dtype.ts";
import { PipeloraError } from "../common/errors.ts";
import { shown } from "../common/shown.ts";

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

/** Rejects what no family here computes: other activations, dropout in the base, experts. */
export function rejectForeignSettings(config: CommonConfig): void {
  const activation = config["hidden_act"];
  if (activation !== undefined && activation !== null && activation !== "silu") {
    unsupported("hidden_act", activation, '"silu"');
  }
  for (const key of ["attention_dropout", "attn_dropout_prob", "emb_dropout_prob", "resid_pdrop", "embd_pdrop"]) {
    const probability = config[key];
    if (probability !== undefined && probability !== null && probability !== 0) unsupported(key, probability, "0");
  }
  for (const key of ["partial_rotary_factor", "rotary_pct"]) {
    const part = config[key];
    if (part !== undefined && part !== null && part !== 1) unsupported(key, part, "1");
  }
  for (const key of ["num_experts", "num_local_experts", "n_routed_experts"]) {
    const experts = config[key];
    if (experts !== undefined && experts !== null && experts !== 0) unsupported(key, experts, "no experts");
  }
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
