import { DEFAULT_LORA_SETTINGS } from "../src/common/lora-settings.ts";
import { defaultConfig } from "../src/config/load.ts";
import type { Config } from "../src/config/options.ts";
import { fullRowsWorkload } from "../src/coordinator/planning/workload.ts";
import { modelSpecFromConfig } from "../src/models/index.ts";
import { resolveLoraTargets } from "../src/models/lora-targets.ts";
import type { ModelSpec } from "../src/models/spec.ts";
import { type Device, fastestPlan, type Holding, NO_OVERRIDES, type PlanRequest } from "../src/plan/index.ts";

const DEVICES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
const PER_NODE = 8;
const ROWS = 1024;
const ROW_TOKENS = 2048;

const BF16: Holding = { dtype: "bfloat16", quantization: { method: "none" }, skipModules: [], fp8: false };
const NF4: Holding = { ...BF16, quantization: { method: "4bit", quantType: "nf4", doubleQuant: true } };
const MODELS = [
  {
    name: "7B nf4",
    holding: NF4,
    config: {
      ...{ model_type: "qwen", architectures: ["QWenLMHeadModel"], hidden_size: 4096, intermediate_size: 22016 },
      ...{ num_hidden_layers: 32, num_attention_heads: 32, kv_channels: 128, vocab_size: 151936, no_bias: true },
      ...{ seq_length: 8192, layer_norm_epsilon: 1e-6, rotary_emb_base: 10000 },
    },
  },
  {
    name: "70B bf16",
    holding: BF16,
    config: {
      ...{ model_type: "llama", architectures: ["LlamaForCausalLM"], hidden_size: 8192, intermediate_size: 28672 },
      ...{ num_hidden_layers: 80, num_attention_heads: 64, num_key_value_heads: 8, vocab_size: 128256 },
      ...{ tie_word_embeddings: false, rms_norm_eps: 1e-5, max_position_embeddings: 8192 },
    },
  },
] as const;

const WAYS = [
  { way: "naive device map", strategy: "balanced", schedule: "sequential" },
  { way: "balanced, 1f1b", strategy: "balanced", schedule: "1f1b" },
  { way: "fastest", strategy: "fastest", schedule: "1f1b" },
] as const;

/**
 * Predicted throughput of LoRA (r 8, every linear) with checkpointing on H100s, eight a node, on a step of 1024 rows of 2048
 * tokens; and how long each plan took. No GPU is needed: assumed rates and links of src/plan/time/rates.ts.
 */
export async function benchSimulated(print: (row: object) => void): Promise<void> {
  for (const { name, holding, config } of MODELS) {
    const spec = modelSpecFromConfig(config);
    for (const count of DEVICES) {
      for (const { way, strategy, schedule } of WAYS) {
        const settings: Config = { ...defaultConfig(), ...STEP, schedule };
        print({ model: name, devices: count, way, ...(await plan(spec, count, holding, strategy, settings)) });
      }
    }
  }
}

const STEP = {
  per_device_train_batch_size: 8,
  gradient_accumulation_steps: ROWS / 8,
  max_length: ROW_TOKENS,
  gradient_checkpointing: true,
};

async function plan(
  spec: ModelSpec,
  count: number,
  holding: Holding,
  strategy: PlanRequest["strategy"],
  config: Config,
) {
  const devices = h100s(count);
  const workload = fullRowsWorkload(config);
  const lora = resolveLoraTargets(spec, { ...DEFAULT_LORA_SETTINGS, targetModules: "all-linear" }).targets;
  const fixed = {
    maxMemory: null,
    planner: "pipelora",
    computeDtype: "bfloat16",
    weightCache: "off",
    activationOffload: "off",
    rates: NO_OVERRIDES,
  } as const;
  const request: Omit<PlanRequest, "work"> = { ...fixed, spec, devices, strategy, holding, lora };
  const began = performance.now();
  try {
    const choices = strategy === "fastest" ? workload.free(devices) : [workload.fixed(devices)];
    const { plan: chosen, choice } = await fastestPlan(request, choices);
    const work = await choice.work(false);
    const { predicted, replicas } = chosen;
    return {
      replicas: replicas.length,
      micro_batches: work.microBatches,
      step_s: Number((predicted!.stepTimeMs / 1e3).toFixed(2)),
      idle: Number(predicted!.bubble.toFixed(3)),
      tokens_per_s: Math.round(predicted!.tokensPerSecond),
      plan_ms: Math.round(performance.now() - began),
    };
  } catch (error) {
    return { fits: false, why: (error as Error).message.split("\n")[0] };
  }
}

function h100s(count: number): Device[] {
  return Array.from({ length: count }, (_, id) => {
    const node = String(Math.floor(id / PER_NODE));
    return { id, kind: "cuda", name: "NVIDIA H100 80GB HBM3", node, memoryBytes: 80e9 };
  });
}
