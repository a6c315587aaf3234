import { expertStacks } from "../../../src/models/experts.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import type { LoraTarget } from "../../../src/models/lora-targets.ts";
import type { ModelSpec } from "../../../src/models/spec.ts";
import type { Device, Holding, PlanRequest, Work } from "../../../src/plan/index.ts";
import { NO_OVERRIDES } from "../../../src/plan/index.ts";

/** config.json of the models whose placements accelerate's vectors hold. */
const CONFIGS: Readonly<Record<string, Record<string, unknown>>> = {
  "qwen-7b": {
    ...{ model_type: "qwen", architectures: ["QWenLMHeadModel"], hidden_size: 4096, intermediate_size: 22016 },
    ...{
      num_hidden_layers: 32,
      num_attention_heads: 32,
      vocab_size: 151936,
      kv_channels: 128,
      no_bias: true,
      bf16: true,
    },
    ...{ seq_length: 8192, max_position_embeddings: 32768, use_dynamic_ntk: true, use_logn_attn: true },
  },
  "qwen2.5-0.5b": {
    ...{ model_type: "qwen2", architectures: ["Qwen2ForCausalLM"], hidden_size: 896, intermediate_size: 4864 },
    ...{ num_hidden_layers: 24, num_attention_heads: 14, num_key_value_heads: 2, vocab_size: 151936 },
    ...{ tie_word_embeddings: true, torch_dtype: "bfloat16" },
  },
  "qwen2.5-7b": {
    ...{ model_type: "qwen2", architectures: ["Qwen2ForCausalLM"], hidden_size: 3584, intermediate_size: 18944 },
    ...{ num_hidden_layers: 28, num_attention_heads: 28, num_key_value_heads: 4, vocab_size: 152064 },
    ...{ tie_word_embeddings: false, torch_dtype: "bfloat16" },
  },
  "qwen2.5-14b": {
    ...{ model_type: "qwen2", architectures: ["Qwen2ForCausalLM"], hidden_size: 5120, intermediate_size: 13824 },
    ...{ num_hidden_layers: 48, num_attention_heads: 40, num_key_value_heads: 8, vocab_size: 152064 },
    ...{ tie_word_embeddings: false, torch_dtype: "bfloat16" },
  },
  "llama-3-8b": {
    ...{ model_type: "llama", architectures: ["LlamaForCausalLM"], hidden_size: 4096, intermediate_size: 14336 },
    ...{ num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 8, vocab_size: 128256 },
    ...{ tie_word_embeddings: false, torch_dtype: "bfloat16" },
  },
  "tiny-llama-3-layer": {
    ...{ model_type: "llama", architectures: ["LlamaForCausalLM"], hidden_size: 128, intermediate_size: 256 },
    ...{ num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 1000 },
    ...{ tie_word_embeddings: true, torch_dtype: "bfloat16" },
  },
  "qwen3-0.6b": {
    ...{ model_type: "qwen3", architectures: ["Qwen3ForCausalLM"], hidden_size: 1024, intermediate_size: 3072 },
    ...{ num_hidden_layers: 28, num_attention_heads: 16, num_key_value_heads: 8, head_dim: 128, vocab_size: 151936 },
    ...{ tie_word_embeddings: true, torch_dtype: "bfloat16" },
  },
  "llama-3-70b": {
    ...{ model_type: "llama", architectures: ["LlamaForCausalLM"], hidden_size: 8192, intermediate_size: 28672 },
    ...{ num_hidden_layers: 80, num_attention_heads: 64, num_key_value_heads: 8, vocab_size: 128256 },
    ...{ tie_word_embeddings: false, torch_dtype: "bfloat16" },
  },
};

/** Of families whose blocks keep or work on more than Llama's; sizes come with the test. */
const KINDS: Readonly<Record<string, Record<string, unknown>>> = {
  gemma2: { model_type: "gemma2", head_dim: 32, num_key_value_heads: 4, tie_word_embeddings: false },
  gemma3: { model_type: "gemma3_text", head_dim: 32, num_key_value_heads: 2, tie_word_embeddings: false },
  granite: { model_type: "granite", residual_multiplier: 0.2, num_key_value_heads: 4 },
  olmo2: { model_type: "olmo2" },
  cohere2: { model_type: "cohere2", num_key_value_heads: 2, tie_word_embeddings: false },
  phi3: { model_type: "phi3", num_key_value_heads: 4, partial_rotary_factor: 0.5 },
  internlm2: { model_type: "internlm2", num_key_value_heads: 2, bias: false },
  exaone4: { model_type: "exaone4", num_key_value_heads: 4 },
  "qwen3-moe": {
    ...{ model_type: "qwen3_moe", num_key_value_heads: 4, num_experts: 16, num_experts_per_tok: 4 },
    ...{ moe_intermediate_size: 128, norm_topk_prob: true, mlp_only_layers: [1] },
  },
  "qwen2-moe": {
    ...{ model_type: "qwen2_moe", num_key_value_heads: 4, num_experts: 12, num_experts_per_tok: 4 },
    ...{ moe_intermediate_size: 96, shared_expert_intermediate_size: 384 },
  },
  "glm4-moe": {
    ...{ model_type: "glm4_moe", num_key_value_heads: 2, n_routed_experts: 16, num_experts_per_tok: 6 },
    ...{ moe_intermediate_size: 64, n_group: 4, topk_group: 2, use_qk_norm: true },
  },
  "qwen3.5": {
    ...{ model_type: "qwen3_5_text", head_dim: 32, num_key_value_heads: 2, full_attention_interval: 2 },
    ...{ linear_num_key_heads: 4, linear_num_value_heads: 8, linear_key_head_dim: 32, linear_value_head_dim: 32 },
  },
  "qwen3-next": {
    ...{ model_type: "qwen3_next", head_dim: 32, num_key_value_heads: 4, num_experts: 16, num_experts_per_tok: 4 },
    ...{ linear_num_key_heads: 2, linear_num_value_heads: 4, linear_key_head_dim: 64, linear_value_head_dim: 48 },
    ...{ moe_intermediate_size: 96, shared_expert_intermediate_size: 128, mlp_only_layers: [0] },
  },
  "deepseek-v2": {
    ...{ model_type: "deepseek_v2", q_lora_rank: null, kv_lora_rank: 64, qk_nope_head_dim: 32, qk_rope_head_dim: 16 },
    ...{ v_head_dim: 32, n_routed_experts: 0 },
  },
  "deepseek-v3": {
    ...{ model_type: "deepseek_v3", q_lora_rank: 96, kv_lora_rank: 48, qk_nope_head_dim: 48, qk_rope_head_dim: 16 },
    ...{ v_head_dim: 80, n_routed_experts: 16, num_experts_per_tok: 4, n_group: 4, topk_group: 2 },
    ...{ first_k_dense_replace: 2, moe_intermediate_size: 96 },
  },
  "gpt-oss": {
    ...{ model_type: "gpt_oss", head_dim: 32, num_key_value_heads: 2, num_local_experts: 8, num_experts_per_tok: 4 },
    ...{ intermediate_size: 256, sliding_window: 16 },
  },
};

export function model(name: string, changes: Record<string, unknown> = {}): ModelSpec {
  return modelSpecFromConfig({ ...(CONFIGS[name] ?? KINDS[name]!), ...changes });
}

/** A pair on each parameter of experts, beside others. */
export function everyExpert(spec: ModelSpec, r: number, others: readonly LoraTarget[]): LoraTarget[] {
  const targets = [...others];
  for (const [layer, block] of spec.layers.entries()) {
    if (block.kind !== "block" || block.experts === undefined) continue;
    const weights = expertStacks(block.experts).filter((stack) => stack.in !== null);
    for (const [index, { name: parameter, in: input, parts }] of weights.entries()) {
      const { name: path, count: experts } = block.experts;
      const out = parts.reduce((sum, { rows }) => sum + rows, 0);
      const name = index === 0 ? `${path}.base_layer` : path;
      const lora = { r: r * experts, alpha: 32, scale: 4, dropout: 0, moduleId: targets.length, dora: false };
      targets.push({ name, role: "experts", layer, in: input!, out, ...lora, stack: { parameter, experts } });
    }
  }
  return targets;
}

/** A pair of rank r on every linear of the blocks from `firstBlock` on. */
export function everyLinear(spec: ModelSpec, r = 8, firstBlock = 0): LoraTarget[] {
  const targets: LoraTarget[] = [];
  for (const [layer, block] of spec.layers.entries()) {
    if (block.kind !== "block" || block.index < firstBlock) continue;
    for (const { name, role, in: input, out } of block.linears) {
      const moduleId = targets.length;
      targets.push({ name, role, layer, in: input, out, r, alpha: 32, scale: 4, dropout: 0, moduleId, dora: false });
    }
  }
  return targets;
}

export const GIB = 2 ** 30;

export function gpus(count: number, memoryBytes: number | null = 80e9, name = "NVIDIA H100 80GB HBM3"): Device[] {
  return Array.from({ length: count }, (_, id) => ({ id, kind: "cuda", name, node: "a", memoryBytes }));
}

export function cpus(count: number, memoryBytes: number | null = 64e9): Device[] {
  return Array.from({ length: count }, (_, id) => ({ id, kind: "cpu", name: null, node: "a", memoryBytes }));
}

export const PLAIN: Holding = { dtype: "bfloat16", quantization: { method: "none" }, skipModules: [], fp8: false };
export const NF4: Holding = {
  dtype: "bfloat16",
  quantization: { method: "4bit", quantType: "nf4", doubleQuant: true },
  skipModules: [],
  fp8: false,
};

export const WORK: Work = {
  microBatches: 16,
  tokens: 1024,
  labelTokens: 1024,
  meanTokens: 1024,
  meanLabelTokens: 1024,
  rowTokens: 256,
  schedule: "1f1b",
  checkpointing: "all",
  cacheTokens: 0,
};

export function request(spec: ModelSpec, devices: readonly Device[], changes: Partial<PlanRequest> = {}): PlanRequest {
  return {
    spec,
    devices,
    maxMemory: null,
    strategy: "auto",
    planner: "pipelora",
    holding: PLAIN,
    computeDtype: "bfloat16",
    weightCache: "off",
    activationOffload: "off",
    lora: everyLinear(spec),
    work: WORK,
    rates: NO_OVERRIDES,
    ...changes,
  };
}
