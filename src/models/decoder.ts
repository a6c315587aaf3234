import { z } from "zod";
import {
  commonConfig,
  configDtype,
  contradiction,
  endTokenIds,
  nullish,
  rejectForeignSettings,
  unsupported,
  width,
} from "./config.ts";
import { checkpointQuantization } from "./quantization.ts";
import { ropeFromConfig } from "./rope.ts";
import type { BlockLayer, LayerSpec, LinearRole, LinearSpec, ModelSpec, ModuleSpec, TensorSpec } from "./spec.ts";

/** Keys of the families whose module tree is Llama's: model.embed_tokens, model.layers.N, model.norm, lm_head. */
export const decoderConfig = commonConfig.extend({
  num_key_value_heads: nullish(width),
  head_dim: nullish(width),
  rms_norm_eps: nullish(z.number().positive().max(1)),
  attention_bias: nullish(z.boolean()),
  mlp_bias: nullish(z.boolean()),
  sliding_window: nullish(width),
  use_sliding_window: nullish(z.boolean()),
  max_window_layers: nullish(z.number().int().nonnegative()),
  layer_types: nullish(z.array(z.string().max(64)).max(4096)),
});
export type DecoderConfig = z.infer<typeof decoderConfig>;

/** What one family adds to the shared tree. */
export interface DecoderFamily {
  readonly family: string;
  /** Class names are built from it: `${prefix}ForCausalLM`, `${prefix}DecoderLayer`, … */
  readonly prefix: string;
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  readonly mlpBias: boolean;
  /** RMSNorm on every head of q and k. */
  readonly headNorm: boolean;
  readonly headDim: number;
  readonly kvHeads: number;
  readonly rmsEps: number;
  readonly ropeBase: number;
  readonly maxPositions: number;
  readonly tied: boolean;
  readonly slidingWindow: (block: number) => number | null;
}

export function decoderSpec(config: DecoderConfig, generation: unknown, family: DecoderFamily): ModelSpec {
  rejectForeignSettings(config);
  const { headDim, kvHeads } = family;
  const heads = config.num_attention_heads;
  if (heads % kvHeads !== 0) {
    contradiction(`num_attention_heads ${heads} is no multiple of num_key_value_heads ${kvHeads}`);
  }
  if (headDim % 2 !== 0) contradiction(`head_dim ${headDim} is odd, rotary embedding needs pairs`);

  const blocks = Array.from({ length: config.num_hidden_layers }, (_, index) => decoderBlock(config, family, index));
  const embedding = "model.embed_tokens.weight";
  const head = family.tied ? embedding : "lm_head.weight";
  const layers: LayerSpec[] = [
    { kind: "embedding", name: "model.embed_tokens", weight: embedding },
    ...blocks,
    { kind: "norm", name: "model.norm", weight: "model.norm.weight" },
    { kind: "head", name: "lm_head", weight: head, tied: family.tied },
  ];
  return {
    family: family.family,
    architecture: `${family.prefix}ForCausalLM`,
    shape: {
      hidden: config.hidden_size,
      heads,
      kvHeads,
      headDim,
      ffn: config.intermediate_size,
      vocab: config.vocab_size,
      blocks: blocks.length,
      rmsEps: family.rmsEps,
    },
    rope: ropeFromConfig(config, headDim, family.ropeBase, family.maxPositions),
    modules: decoderModules(blocks, family),
    tensors: decoderTensors(config, blocks, family),
    noSplitModuleClasses: [`${family.prefix}DecoderLayer`],
    tied: family.tied ? [["lm_head.weight", embedding]] : [],
    layers,
    dtype: configDtype(config, "float32"),
    quantization: checkpointQuantization(config),
    lossRule: "step-token-mean",
    eosTokenIds: endTokenIds(config, generation),
    maxPositions: family.maxPositions,
  };
}

/** head_dim, or hidden_size / num_attention_heads where the configuration leaves it out. */
export function headWidth(config: DecoderConfig): number {
  if (config.head_dim !== undefined && config.head_dim !== null) return config.head_dim;
  const { hidden_size: hidden, num_attention_heads: heads } = config;
  if (hidden % heads !== 0) contradiction(`hidden_size ${hidden} is no multiple of num_attention_heads ${heads}`);
  return hidden / heads;
}

/**
 * Windows of Qwen2 and Qwen3: by layer_types where they are written out, else from block max_window_layers on, and only
 * with use_sliding_window. A query sees itself and the window - 1 keys before it.
 */
export function mixedWindows(config: DecoderConfig): (block: number) => number | null {
  const window = (config.use_sliding_window ?? false) ? (config.sliding_window ?? null) : null;
  const types = config.layer_types ?? null;
  if (types === null) {
    const first = config.max_window_layers ?? 28;
    return (block) => (block >= first ? window : null);
  }
  if (types.length !== config.num_hidden_layers) {
    contradiction(`layer_types has ${types.length} entries for num_hidden_layers ${config.num_hidden_layers}`);
  }
  for (const type of types) {
    if (type !== "full_attention" && type !== "sliding_attention") {
      unsupported("layer_types", type, "full_attention, sliding_attention");
    }
    if (type === "sliding_attention" && window === null) {
      contradiction("layer_types has sliding_attention but no sliding_window is in use");
    }
  }
  return (block) => (types[block] === "sliding_attention" ? window : null);
}

function decoderBlock(config: DecoderConfig, family: DecoderFamily, index: number): BlockLayer {
  const name = `model.layers.${index}`;
  const hidden = config.hidden_size;
  const ffn = config.intermediate_size;
  const q = config.num_attention_heads * family.headDim;
  const kv = family.kvHeads * family.headDim;
  const attention = `${name}.self_attn`;
  const mlp = `${name}.mlp`;
  const linear = (role: LinearRole, path: string, input: number, out: number, bias: boolean): LinearSpec => ({
    role,
    name: path,
    in: input,
    out,
    bias,
  });
  return {
    kind: "block",
    name,
    index,
    attnNorm: `${name}.input_layernorm.weight`,
    mlpNorm: `${name}.post_attention_layernorm.weight`,
    qNorm: family.headNorm ? `${attention}.q_norm.weight` : null,
    kNorm: family.headNorm ? `${attention}.k_norm.weight` : null,
    linears: [
      linear("q", `${attention}.q_proj`, hidden, q, family.qkvBias),
      linear("k", `${attention}.k_proj`, hidden, kv, family.qkvBias),
      linear("v", `${attention}.v_proj`, hidden, kv, family.qkvBias),
      linear("o", `${attention}.o_proj`, q, hidden, family.outputBias),
      linear("gate", `${mlp}.gate_proj`, hidden, ffn, family.mlpBias),
      linear("up", `${mlp}.up_proj`, hidden, ffn, family.mlpBias),
      linear("down", `${mlp}.down_proj`, ffn, hidden, family.mlpBias),
    ],
    slidingWindow: family.slidingWindow(index),
  };
}

const isAttention = (linear: LinearSpec) => linear.name.includes(".self_attn.");

function decoderModules(blocks: readonly BlockLayer[], family: DecoderFamily): ModuleSpec[] {
  const norm = `${family.prefix}RMSNorm`;
  const module = (name: string, className: string): ModuleSpec => ({ name, className });
  const linears = (block: BlockLayer, attention: boolean) =>
    block.linears.filter((linear) => isAttention(linear) === attention).map(({ name }) => module(name, "Linear"));
  return [
    module("", `${family.prefix}ForCausalLM`),
    module("model", `${family.prefix}Model`),
    module("model.embed_tokens", "Embedding"),
    module("model.layers", "ModuleList"),
    ...blocks.flatMap((block) => [
      module(block.name, `${family.prefix}DecoderLayer`),
      module(`${block.name}.self_attn`, `${family.prefix}Attention`),
      ...linears(block, true),
      ...(family.headNorm ? ["q_norm", "k_norm"] : []).map((leaf) => module(`${block.name}.self_attn.${leaf}`, norm)),
      module(`${block.name}.mlp`, `${family.prefix}MLP`),
      ...linears(block, false),
      module(`${block.name}.mlp.act_fn`, "SiLUActivation"),
      module(`${block.name}.input_layernorm`, norm),
      module(`${block.name}.post_attention_layernorm`, norm),
    ]),
    module("model.norm", norm),
    module("model.rotary_emb", `${family.prefix}RotaryEmbedding`),
    module("lm_head", "Linear"),
  ];
}

function decoderTensors(config: DecoderConfig, blocks: readonly BlockLayer[], family: DecoderFamily): TensorSpec[] {
  const { hidden_size: hidden, vocab_size: vocab } = config;
  const buffer = (name: string): TensorSpec => ({
    name,
    shape: [family.headDim / 2],
    kind: "buffer",
    dtype: "float32",
    persistent: false,
  });
  return [
    parameter("model.embed_tokens.weight", [vocab, hidden]),
    ...blocks.flatMap((block) => [
      ...block.linears.filter(isAttention).flatMap(linearTensors),
      ...[block.qNorm, block.kNorm].filter((name) => name !== null).map((name) => parameter(name, [family.headDim])),
      ...block.linears.filter((linear) => !isAttention(linear)).flatMap(linearTensors),
      parameter(block.attnNorm, [hidden]),
      parameter(block.mlpNorm, [hidden]),
    ]),
    parameter("model.norm.weight", [hidden]),
    ...(family.tied ? [] : [parameter("lm_head.weight", [vocab, hidden])]),
    buffer("model.rotary_emb.inv_freq"),
    buffer("model.rotary_emb.original_inv_freq"),
  ];
}

export function parameter(name: string, shape: readonly number[]): TensorSpec {
  return { name, shape, kind: "parameter", dtype: null, persistent: true };
}

/** Weight [out, in], then bias [out], as torch.nn.Linear registers them. */
export function linearTensors(linear: LinearSpec): TensorSpec[] {
  const weight = parameter(`${linear.name}.weight`, [linear.out, linear.in]);
  return linear.bias ? [weight, parameter(`${linear.name}.bias`, [linear.out])] : [weight];
}
