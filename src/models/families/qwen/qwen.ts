import { z } from "zod";
import type { FloatDtype } from "../../../common/dtype.ts";
import {
  commonConfig,
  configDtype,
  contradiction,
  endTokenIds,
  extent,
  nullish,
  parseConfig,
  rejectForeignSettings,
  unsupported,
  width,
} from "../../config.ts";
import { checkpointQuantization } from "../../quantization.ts";
import { inverseFrequencies } from "../../rope.ts";
import { computeRules } from "../../rules.ts";
import type { BlockLayer, LinearSpec, ModelSpec, ModuleSpec, TensorSpec } from "../../spec.ts";
import { linearTensors, parameter } from "../../tensors.ts";

const qwenConfig = commonConfig.extend({
  kv_channels: nullish(width),
  layer_norm_epsilon: nullish(z.number().positive().max(1)),
  no_bias: nullish(z.boolean()),
  rotary_emb_base: nullish(z.number().positive().max(1e12)),
  scale_attn_weights: nullish(z.boolean()),
  seq_length: nullish(extent(2 ** 31)),
  use_dynamic_ntk: nullish(z.boolean()),
  use_logn_attn: nullish(z.boolean()),
  bf16: nullish(z.boolean()),
  fp16: nullish(z.boolean()),
  fp32: nullish(z.boolean()),
});
type QwenConfig = z.infer<typeof qwenConfig>;

/** Length of the log-n table in the model's remote code: positions 1 … 32767. */
const LOGN_POSITIONS = 32767;

/**
 * Qwen (v1), whose code came with the checkpoint: fused c_attn, an MLP of w1 (up), w2 (gate) and c_proj, each of width
 * intermediate_size / 2.
 */
export function qwenSpec(config: unknown, generation: unknown): ModelSpec {
  const parsed = parseConfig(qwenConfig, config);
  rejectForeignSettings(parsed);
  const activation = parsed["hidden_act"];
  if (activation !== undefined && activation !== null && activation !== "silu") {
    unsupported("hidden_act", activation, '"silu"');
  }
  if (parsed.scale_attn_weights === false) unsupported("scale_attn_weights", false, "true");
  if (parsed.tie_word_embeddings === true) unsupported("tie_word_embeddings", true, "false");
  const { hidden_size: hidden, num_attention_heads: heads, vocab_size: vocab } = parsed;
  const headDim = parsed.kv_channels ?? 128;
  if (headDim % 2 !== 0) contradiction(`kv_channels ${headDim} is odd, rotary embedding needs pairs`);
  if (parsed.intermediate_size % 2 !== 0) contradiction(`intermediate_size ${parsed.intermediate_size} is odd`);
  if (hidden % heads !== 0) contradiction(`hidden_size ${hidden} is no multiple of num_attention_heads ${heads}`);

  const blocks = Array.from({ length: parsed.num_hidden_layers }, (_, index) => qwenBlock(parsed, headDim, index));
  const base = parsed.rotary_emb_base ?? 10000;
  const dynamicNtk = parsed.use_dynamic_ntk ?? true;
  const logn = parsed.use_logn_attn ?? true;
  const maxPositions = parsed.max_position_embeddings ?? 8192;
  return {
    family: "qwen",
    architecture: "QWenLMHeadModel",
    shape: {
      hidden,
      heads,
      kvHeads: heads,
      headDim,
      ffn: parsed.intermediate_size / 2,
      vocab,
      blocks: blocks.length,
      rmsEps: parsed.layer_norm_epsilon ?? 1e-6,
    },
    rules: computeRules(
      [{ base, invFreq: inverseFrequencies(base, headDim), attentionScaling: 1, long: null, dynamic: null }],
      {
        qwenLong: dynamicNtk || logn ? { seqLength: parsed.seq_length ?? maxPositions, dynamicNtk, logn } : null,
      },
    ),
    modules: qwenModules(blocks),
    tensors: qwenTensors(parsed, blocks, headDim),
    noSplitModuleClasses: ["QWenBlock"],
    tied: [],
    skipped: [],
    layers: [
      { kind: "embedding", name: "transformer.wte", weight: "transformer.wte.weight" },
      ...blocks,
      { kind: "norm", name: "transformer.ln_f", weight: "transformer.ln_f.weight" },
      { kind: "head", name: "lm_head", weight: "lm_head.weight", tied: false },
    ],
    dtype: configDtype(parsed, flaggedDtype(parsed)),
    quantization: checkpointQuantization(parsed),
    lossRule: "micro-batch-mean",
    eosTokenIds: endTokenIds(parsed, generation),
    maxPositions,
    remarks: [],
  };
}

/** Qwen's own switches; with all off its code picks bfloat16, the dtype its checkpoints are in. */
function flaggedDtype(config: QwenConfig): FloatDtype {
  if (config.fp32 === true) return "float32";
  return config.fp16 === true ? "float16" : "bfloat16";
}

function qwenBlock(config: QwenConfig, headDim: number, index: number): BlockLayer {
  const name = `transformer.h.${index}`;
  const hidden = config.hidden_size;
  const projection = headDim * config.num_attention_heads;
  const ffn = config.intermediate_size / 2;
  const bias = !(config.no_bias ?? true);
  const linears: LinearSpec[] = [
    { role: "qkv", name: `${name}.attn.c_attn`, in: hidden, out: 3 * projection, bias: true },
    { role: "o", name: `${name}.attn.c_proj`, in: projection, out: hidden, bias },
    { role: "up", name: `${name}.mlp.w1`, in: hidden, out: ffn, bias },
    { role: "gate", name: `${name}.mlp.w2`, in: hidden, out: ffn, bias },
    { role: "down", name: `${name}.mlp.c_proj`, in: ffn, out: hidden, bias },
  ];
  return {
    kind: "block",
    name,
    index,
    attnNorm: `${name}.ln_1.weight`,
    attnPostNorm: null,
    mlpNorm: `${name}.ln_2.weight`,
    mlpPostNorm: null,
    qNorm: null,
    kNorm: null,
    linears,
    rotary: 0,
    slidingWindow: null,
    attention: { kind: "softmax", gated: false },
  };
}

const attentionLinears = (block: BlockLayer) => block.linears.slice(0, 2);
const mlpLinears = (block: BlockLayer) => block.linears.slice(2);

function qwenModules(blocks: readonly BlockLayer[]): ModuleSpec[] {
  const module = (name: string, className: string): ModuleSpec => ({ name, className });
  const linear = ({ name }: LinearSpec) => module(name, "Linear");
  return [
    module("", "QWenLMHeadModel"),
    module("transformer", "QWenModel"),
    module("transformer.wte", "Embedding"),
    module("transformer.drop", "Dropout"),
    module("transformer.rotary_emb", "RotaryEmbedding"),
    module("transformer.h", "ModuleList"),
    ...blocks.flatMap((block) => [
      module(block.name, "QWenBlock"),
      module(`${block.name}.ln_1`, "RMSNorm"),
      module(`${block.name}.attn`, "QWenAttention"),
      ...attentionLinears(block).map(linear),
      module(`${block.name}.attn.attn_dropout`, "Dropout"),
      module(`${block.name}.ln_2`, "RMSNorm"),
      module(`${block.name}.mlp`, "QWenMLP"),
      ...mlpLinears(block).map(linear),
    ]),
    module("transformer.ln_f", "RMSNorm"),
    module("lm_head", "Linear"),
  ];
}

function qwenTensors(config: QwenConfig, blocks: readonly BlockLayer[], headDim: number): TensorSpec[] {
  const { hidden_size: hidden, vocab_size: vocab } = config;
  const buffer = (name: string, shape: readonly number[]): TensorSpec => ({
    name,
    shape,
    kind: "buffer",
    dtype: null,
    persistent: false,
  });
  return [
    parameter("transformer.wte.weight", [vocab, hidden]),
    ...blocks.flatMap((block) => [
      parameter(`${block.name}.ln_1.weight`, [hidden]),
      ...attentionLinears(block).flatMap(linearTensors),
      parameter(`${block.name}.ln_2.weight`, [hidden]),
      ...mlpLinears(block).flatMap(linearTensors),
    ]),
    parameter("transformer.ln_f.weight", [hidden]),
    parameter("lm_head.weight", [vocab, hidden]),
    buffer("transformer.rotary_emb.inv_freq", [headDim / 2]),
    ...blocks.flatMap((block) => [
      buffer(`${block.name}.attn.masked_bias`, []),
      buffer(`${block.name}.attn.logn_tensor`, [1, LOGN_POSITIONS, 1, 1]),
    ]),
  ];
}
