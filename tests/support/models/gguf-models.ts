import { mkdirSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import type { Config } from "../../../src/config/options.ts";
import { initModel } from "../../../src/coordinator/tools/init-model.ts";
import { writeAdapter } from "../../../src/formats/adapter.ts";
import { openSafetensors, readFloat32 } from "../../../src/formats/safetensors.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import type { ModelSpec } from "../../../src/models/spec.ts";

const VOCAB = 320;
const SIZES = {
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: VOCAB,
  max_position_embeddings: 512,
  initializer_range: 0.2,
  eos_token_id: 257,
  bos_token_id: 256,
};
const MOE = { num_experts: 8, num_experts_per_tok: 2, moe_intermediate_size: 64, norm_topk_prob: true };
const DELTA = {
  ...{ head_dim: 32, linear_num_key_heads: 2, linear_num_value_heads: 4, linear_key_head_dim: 32 },
  ...{ linear_value_head_dim: 32, linear_conv_kernel_dim: 4, full_attention_interval: 4, tie_word_embeddings: false },
};
const LATENT = {
  ...{ num_key_value_heads: 4, q_lora_rank: null, kv_lora_rank: 32, qk_nope_head_dim: 16, qk_rope_head_dim: 16 },
  ...{ v_head_dim: 16, n_routed_experts: 8, num_experts_per_tok: 2, moe_intermediate_size: 64, n_shared_experts: 1 },
  ...{ first_k_dense_replace: 1, num_nextn_predict_layers: 0, rms_norm_eps: 1e-6 },
};

/** Configurations of one small model a family, as the families' config.json have them. */
export const GGUF_CONFIGS: Readonly<Record<string, Record<string, unknown>>> = {
  qwen2: { model_type: "qwen2", ...SIZES, tie_word_embeddings: true },
  qwen3: { model_type: "qwen3", ...SIZES, head_dim: 32 },
  "qwen3-yarn": {
    ...{ model_type: "qwen3", ...SIZES, head_dim: 32, max_position_embeddings: 128, tie_word_embeddings: true },
    rope_scaling: { rope_type: "yarn", factor: 4, original_max_position_embeddings: 32 },
  },
  llama: { model_type: "llama", ...SIZES },
  "llama-3.1": {
    ...{ model_type: "llama", ...SIZES, rope_theta: 500000 },
    rope_scaling: {
      ...{ rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 },
      original_max_position_embeddings: 64,
    },
  },
  "llama-linear": { model_type: "llama", ...SIZES, rope_scaling: { type: "linear", factor: 4 } },
  "llama-biased": { model_type: "llama", ...SIZES, attention_bias: true, mlp_bias: true },
  mistral: { model_type: "mistral", ...SIZES, sliding_window: null },
  ministral3: {
    ...{ model_type: "ministral3", ...SIZES, head_dim: 16 },
    rope_parameters: {
      ...{ rope_type: "yarn", rope_theta: 1000000, factor: 4, original_max_position_embeddings: 32, beta_fast: 32 },
      ...{ beta_slow: 1, mscale: 1, mscale_all_dim: 1, llama_4_scaling_beta: 0.1 },
    },
  },
  gemma: { model_type: "gemma", ...SIZES, head_dim: 32, hidden_activation: "gelu_pytorch_tanh" },
  gemma2: { model_type: "gemma2", ...SIZES, head_dim: 32, query_pre_attn_scalar: 32, sliding_window: 16 },
  gemma3: {
    ...{ model_type: "gemma3_text", ...SIZES, num_hidden_layers: 7, head_dim: 32, query_pre_attn_scalar: 32 },
    ...{ sliding_window: 16, rope_scaling: { rope_type: "linear", factor: 8 } },
  },
  phi3: { model_type: "phi3", ...SIZES, pad_token_id: 0, original_max_position_embeddings: 512 },
  "phi3-long": {
    ...{ model_type: "phi3", ...SIZES, pad_token_id: 0, original_max_position_embeddings: 512 },
    max_position_embeddings: 1024,
    rope_scaling: {
      ...{ type: "longrope", short_factor: [1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7] },
      long_factor: [1, 2, 3, 4, 5, 6, 7, 8],
    },
  },
  glm: { model_type: "glm", ...SIZES, head_dim: 16, attention_bias: true },
  glm4: { model_type: "glm4", ...SIZES, head_dim: 32, attention_bias: true },
  granite: {
    ...{ model_type: "granite", ...SIZES, embedding_multiplier: 12, logits_scaling: 8 },
    ...{ residual_multiplier: 0.22, attention_multiplier: 0.2 },
  },
  minicpm: { model_type: "minicpm", ...SIZES, scale_emb: 12, scale_depth: 1.4, dim_model_base: 32 },
  internlm2: { model_type: "internlm2", ...SIZES, bias: false },
  baichuan: { model_type: "baichuan", ...SIZES, num_hidden_layers: 32 },
  cohere2: { model_type: "cohere2", ...SIZES, sliding_window: 16, layer_norm_eps: 1e-5, logit_scale: 0.0625 },
  olmo2: { model_type: "olmo2", ...SIZES },
  seed_oss: { model_type: "seed_oss", ...SIZES, head_dim: 32 },
  exaone4: { model_type: "exaone4", ...SIZES, sliding_window: null },
  ernie4_5: { model_type: "ernie4_5", ...SIZES, head_dim: 16 },
  hunyuan: { model_type: "hunyuan_v1_dense", ...SIZES },
  "hunyuan-alpha": {
    ...{ model_type: "hunyuan_v1_dense", ...SIZES },
    rope_scaling: { type: "dynamic", alpha: 50, factor: 1 },
  },
  smollm3: { model_type: "smollm3", ...SIZES },
  qwen: {
    ...{ model_type: "qwen", ...SIZES, intermediate_size: 256, kv_channels: 16, rotary_emb_base: 10000 },
    ...{ seq_length: 512, use_dynamic_ntk: true, use_logn_attn: true, no_bias: true },
  },
  chatglm: {
    ...{ model_type: "chatglm", hidden_size: 64, ffn_hidden_size: 128, num_layers: 4, padded_vocab_size: VOCAB },
    ...{ num_attention_heads: 4, multi_query_attention: true, multi_query_group_num: 2, kv_channels: 16 },
    ...{ add_qkv_bias: true, seq_length: 512, eos_token_id: 257, initializer_range: 0.2 },
  },
  mixtral: { model_type: "mixtral", ...SIZES, num_local_experts: 8, num_experts_per_tok: 2 },
  qwen2_moe: {
    ...{ model_type: "qwen2_moe", ...SIZES, ...MOE, norm_topk_prob: false, shared_expert_intermediate_size: 64 },
  },
  qwen3_moe: { model_type: "qwen3_moe", ...SIZES, head_dim: 32, ...MOE },
  glm4_moe: {
    ...{ model_type: "glm4_moe", ...SIZES, head_dim: 32, n_routed_experts: 8, num_experts_per_tok: 2 },
    ...{ moe_intermediate_size: 64, n_shared_experts: 1, first_k_dense_replace: 1, num_nextn_predict_layers: 0 },
    ...{ use_qk_norm: true, attention_bias: true, routed_scaling_factor: 2.5, n_group: 1, topk_group: 1 },
  },
  gpt_oss: {
    ...{ model_type: "gpt_oss", ...SIZES, head_dim: 32, num_local_experts: 8, num_experts_per_tok: 2 },
    ...{ sliding_window: 16, intermediate_size: 64, rope_parameters: { rope_type: "default", rope_theta: 150000 } },
  },
  qwen3_next: {
    ...{ model_type: "qwen3_next", ...SIZES, ...MOE, ...DELTA, shared_expert_intermediate_size: 64 },
  },
  qwen3_5: { model_type: "qwen3_5_text", ...SIZES, ...DELTA },
  qwen3_5_moe: { model_type: "qwen3_5_moe_text", ...SIZES, ...MOE, ...DELTA, shared_expert_intermediate_size: 64 },
  deepseek_v2: {
    ...{
      model_type: "deepseek_v2",
      ...SIZES,
      ...LATENT,
      num_hidden_layers: 27,
      norm_topk_prob: false,
      topk_method: "greedy",
    },
  },
  deepseek_v3: {
    ...{ model_type: "deepseek_v3", ...SIZES, ...LATENT, q_lora_rank: 32, n_group: 4, topk_group: 2 },
    ...{ routed_scaling_factor: 2.5 },
  },
};

const TEMPLATE =
  "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** A byte-level BPE of 256 bytes, special tokens from 256 on, and a few merges; cuts are Llama 3's. */
function writeTokenizer(dir: string): void {
  const seen = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  const letters = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(seen(byte) ? byte : next++));
  const specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];
  const merges = ["t h", "th e", "i n", "a n", "an d", "Ġ t", "Ġ a", "e r", "o n", "Ġ the"];
  const vocab = Object.fromEntries([
    ...letters.map((letter, id) => [letter, id] as const),
    ...merges.map((merge, i) => [merge.replace(" ", ""), 256 + specials.length + i] as const),
  ]);
  const flags = { lstrip: false, rstrip: false, normalized: false, single_word: false, special: true };
  const pattern = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
  const json = {
    added_tokens: specials.map((content, i) => ({ ...flags, id: 256 + i, content })),
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false },
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: null,
    decoder: { type: "ByteLevel" },
    model: { type: "BPE", vocab, merges },
  };
  writeFileSync(join(dir, "tokenizer.json"), JSON.stringify(json));
  const config = { tokenizer_class: "PreTrainedTokenizerFast", bos_token: "<s>", eos_token: "</s>" };
  writeFileSync(join(dir, "tokenizer_config.json"), JSON.stringify({ ...config, chat_template: TEMPLATE }));
}

/** A head that is the embedding's tensor says every token again, unless the blocks' part of what it reads is larger than the token's. */
async function quietenEmbedding(dir: string, spec: ModelSpec): Promise<void> {
  const head = spec.layers.find((layer) => layer.kind === "head")!;
  if (!head.tied) return;
  const path = join(dir, "model.safetensors");
  const location = (await openSafetensors(path)).tensors.get(head.weight)!;
  const values = (await readFloat32(location)).map((value) => value / 30);
  const file = await open(path, "r+");
  await file.write(new Uint8Array(values.buffer), 0, values.byteLength, location.offset);
  await file.close();
}

/** What an adapter is on: all linears where nothing is said. `seed`: of the model's weights. */
export interface LoraChoice {
  readonly targetModules?: readonly string[];
  readonly targetParameters?: readonly string[];
  readonly useRslora?: boolean;
  readonly seed?: number;
}

/** Writes model and adapter (all linears, B not 0, so that the model's tokens change) into `root`. */
export async function writeGgufModel(
  root: string,
  name: string,
  lora: LoraChoice = {},
): Promise<{ readonly model: string; readonly adapter: string }> {
  const config = GGUF_CONFIGS[name]!;
  // llama.cpp looks for tokens of Phi-3's in files whose name says so.
  const [model, adapter] = [join(root, name, "small"), join(root, name, "adapter")];
  mkdirSync(model, { recursive: true });
  const file = join(root, `${name}.json`);
  writeFileSync(file, JSON.stringify(config));
  await initModel({
    config: file,
    output_dir: model,
    torch_dtype: "float32",
    seed: lora.seed ?? 7,
    max_shard_size: "5GB",
  } as Config);
  writeTokenizer(model);
  const spec = await readModelSpec(model);
  await quietenEmbedding(model, spec);
  const settings = {
    ...{ r: 8, alpha: 12, dropout: 0, excludeModules: null, layersToTransform: null, layersPattern: null },
    ...{ rankPattern: {}, alphaPattern: {}, useRslora: lora.useRslora ?? false, useDora: false },
    ...{ modulesToSave: null, initLoraWeights: true },
    ...{ bias: "none" as const, trainableTokenIndices: null, evaConfig: null },
    targetModules: lora.targetModules ?? (lora.targetParameters === undefined ? ("all-linear" as const) : []),
    targetParameters: lora.targetParameters ?? null,
  };
  const resolved = resolveLoraTargets(spec, settings);
  let seed = 1;
  const random = () => {
    seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
    return seed / 0x40000000 - 1;
  };
  await writeAdapter(adapter, {
    settings,
    targetModules: resolved.targetModules,
    baseModel: null,
    matrices: resolved.matrices,
    values: (name) => {
      const [rows, columns] = resolved.matrices.find((matrix) => matrix.name === name)!.shape as [number, number];
      return Float32Array.from({ length: rows * columns }, () => 0.15 * random());
    },
  });
  return { model, adapter };
}
