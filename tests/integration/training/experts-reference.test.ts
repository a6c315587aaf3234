import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { elementCount } from "../../../src/common/dtype.ts";
import { DEFAULT_LORA_SETTINGS } from "../../../src/common/lora-settings.ts";
import { writeAdapter } from "../../../src/formats/adapter.ts";
import { writeCheckpoint } from "../../../src/formats/checkpoint-writer.ts";
import { float32Bytes } from "../../../src/formats/safetensors.ts";
import { storedTensors } from "../../../src/models/experts.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { meanLossBatch, wholeModel } from "../../support/models/one-engine.ts";
import {
  type Deltas,
  type ReferenceConfig,
  ReferenceModel,
  type Weights,
} from "../../support/models/reference-experts.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const SIZES = {
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 8,
  vocab_size: 50,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  max_position_embeddings: 128,
  torch_dtype: "float32",
};

/** Numbers from a seed, in (-1, 1). */
function drawer(seed: number): () => number {
  let state = seed * 2654435761 + 1;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * 0.999;
  };
}

/** A family's settings with sizes and switches drawn at random. */
const CASES: Record<string, (pick: (...of: number[]) => number) => Record<string, unknown>> = {
  qwen3_moe: (pick) => ({
    model_type: "qwen3_moe",
    num_experts: pick(4, 7, 16),
    num_experts_per_tok: pick(1, 2, 4),
    moe_intermediate_size: pick(8, 24, 40),
    norm_topk_prob: pick(0, 1) === 1,
    mlp_only_layers: pick(0, 1) === 1 ? [0] : [],
    decoder_sparse_step: 1,
  }),
  qwen2_moe: (pick) => ({
    model_type: "qwen2_moe",
    num_experts: pick(3, 6, 11),
    num_experts_per_tok: pick(1, 2, 3),
    moe_intermediate_size: pick(8, 24),
    shared_expert_intermediate_size: pick(16, 48),
    norm_topk_prob: pick(0, 1) === 1,
    decoder_sparse_step: pick(1, 2),
  }),
  mixtral: (pick) => ({
    model_type: "mixtral",
    num_local_experts: pick(2, 5, 8),
    num_experts_per_tok: pick(1, 2),
    rms_norm_eps: 1e-5,
  }),
  glm4_moe: (pick) => {
    const groups = pick(1, 2, 4);
    return {
      model_type: "glm4_moe",
      n_routed_experts: 4 * groups,
      num_experts_per_tok: pick(1, 2, 3),
      moe_intermediate_size: pick(8, 24),
      n_shared_experts: pick(1, 2),
      first_k_dense_replace: pick(0, 1),
      norm_topk_prob: pick(0, 1) === 1,
      routed_scaling_factor: pick(1, 2.5),
      n_group: groups,
      topk_group: Math.max(1, pick(1, groups)),
      attention_bias: pick(0, 1) === 1,
      use_qk_norm: pick(0, 1) === 1,
      partial_rotary_factor: 0.5,
      num_nextn_predict_layers: 0,
    };
  },
  gpt_oss: (pick) => ({
    model_type: "gpt_oss",
    num_local_experts: pick(2, 5, 8),
    num_experts_per_tok: pick(1, 2),
    intermediate_size: pick(16, 32),
    layer_types: ["sliding_attention", "full_attention"],
    sliding_window: pick(3, 5),
    rope_parameters: { rope_type: "default", rope_theta: 10000 },
  }),
  llama4_text: (pick) => ({
    model_type: "llama4_text",
    num_hidden_layers: 3,
    num_local_experts: pick(2, 5, 8),
    num_experts_per_tok: pick(1, 2),
    intermediate_size: pick(8, 24),
    intermediate_size_mlp: pick(16, 40),
    interleave_moe_layer_step: pick(1, 2),
    no_rope_layers: [pick(0, 1), 1, pick(0, 1)],
    attention_chunk_size: pick(1, 3, 5, 13, 200),
    attn_temperature_tuning: pick(0, 1) === 1,
    floor_scale: pick(1, 4),
    attn_scale: pick(0.1, 0.7),
    use_qk_norm: pick(0, 1) === 1,
    attention_bias: pick(0, 1) === 1,
    rms_norm_eps: 1e-5,
  }),
};

interface Made {
  readonly model: string;
  readonly adapter: string;
  readonly reference: (changed?: { name: string; matrix: "a" | "b"; index: number; by: number }) => ReferenceModel;
}

/** A checkpoint and an adapter of random float32 values, and the reference over the same. */
async function make(
  t: TestContext,
  config: Record<string, unknown>,
  wanted: { modules: string[]; parameters: string[] },
  seed: number,
): Promise<Made> {
  const draw = drawer(seed);
  const spec = modelSpecFromConfig(config);
  const model = temporaryFolder(t);
  const weights = new Map<string, Float32Array>();
  for (const { name, shape } of storedTensors(spec, null).filter(({ persistent }) => persistent)) {
    // Norms near 1, matrices so that activations stay near 1, the rest small; gpt-oss's experts are large enough to be clamped.
    const scale =
      shape.length === 1 ? 0.3 : /experts\.(gate_up|down)_proj$/.test(name) ? 1.5 : 2 / Math.sqrt(shape.at(-1)!);
    const mean = name.endsWith("norm.weight") ? 1 : 0;
    weights.set(
      name,
      Float32Array.from({ length: elementCount(shape) }, () => mean + scale * draw()),
    );
  }
  const tensors = storedTensors(spec, null).filter(({ name }) => weights.has(name));
  await writeCheckpoint(
    model,
    tensors.map(({ name, shape }) => ({
      name,
      shape,
      dtype: "float32" as const,
      data: () => float32Bytes(weights.get(name)!),
    })),
    "1GB",
  );
  writeFileSync(join(model, "config.json"), JSON.stringify(config));
  const settings = {
    ...{ ...DEFAULT_LORA_SETTINGS, r: 3, alpha: 5 },
    targetModules: wanted.modules,
    targetParameters: wanted.parameters.length > 0 ? wanted.parameters : null,
  };
  const { targets, targetModules, matrices } = resolveLoraTargets(spec, settings);
  const pairs = new Map(
    targets.map((target) => [
      target.name,
      {
        a: Float32Array.from({ length: target.r * target.in }, () => 0.3 * draw()),
        b: Float32Array.from({ length: target.out * target.r }, () => 0.3 * draw()),
      },
    ]),
  );
  const adapter = temporaryFolder(t);
  await writeAdapter(adapter, {
    ...{ settings, targetModules, baseModel: null, matrices },
    values: (name) => pairs.get(moduleOf(name))![name.includes(".lora_A.") ? "a" : "b"],
  });
  const doubles: Weights = new Map([...weights].map(([name, values]) => [name, Float64Array.from(values)]));
  return {
    ...{ model, adapter },
    reference: (changed) => {
      const deltas: Deltas = new Map(
        targets.map((target) => {
          const a = Float64Array.from(pairs.get(target.name)!.a);
          const b = Float64Array.from(pairs.get(target.name)!.b);
          if (changed?.name === target.name) (changed.matrix === "a" ? a : b)[changed.index]! += changed.by;
          const experts = target.stack?.experts ?? 1;
          const key =
            target.stack?.parameter ??
            `${target.name.replace("mlp.gate", config["model_type"] === "mixtral" ? "block_sparse_moe.gate" : "mlp.gate")}.weight`;
          return [key, { a, b, r: target.r / experts, scale: target.scale, experts }];
        }),
      );
      return new ReferenceModel(config as ReferenceConfig, doubles, deltas);
    },
  };
}

/** The module of a pair's matrix. */
const moduleOf = (name: string) => name.slice(0, name.lastIndexOf(".lora_"));

const IDS = [3, 17, 41, 8, 29, 3, 44, 12, 5, 36, 21, 9, 48];

for (const [family, draw] of Object.entries(CASES)) {
  const router =
    { gpt_oss: "mlp.router.weight", llama4_text: "feed_forward.router.weight" }[family] ?? "mlp.gate.weight";
  const TARGETS = [
    { modules: ["q_proj", "v_proj", "o_proj"], parameters: [] },
    { modules: ["k_proj"], parameters: ["experts.gate_up_proj", "experts.down_proj"] },
    { modules: [], parameters: ["experts.down_proj", router] },
    ...(family === "qwen2_moe"
      ? [{ modules: ["shared_expert.up_proj", "shared_expert.down_proj", "shared_expert_gate"], parameters: [] }]
      : []),
    ...(family === "llama4_text" ? [{ modules: ["shared_expert.gate_proj", "down_proj"], parameters: [] }] : []),
    ...(family === "glm4_moe" ? [{ modules: ["shared_experts.gate_proj", "o_proj"], parameters: [] }] : []),
  ];
  for (const [number, targets] of TARGETS.entries()) {
    test(`${family}, ${[...targets.modules, ...targets.parameters].join(", ")}: loss and gradients of the formulas in float64`, async (t) => {
      for (let seed = 1; seed <= 4; seed++) {
        const number01 = drawer(100 * seed + number);
        const pick = (...of: number[]) => of[Math.floor(((number01() + 1) / 2) * of.length)]!;
        const config = { ...SIZES, ...draw(pick) };
        const { model, adapter, reference } = await make(t, config, targets, 10 * seed + number);
        const engine = await wholeModel(model, adapter);
        const { lossSum } = await engine.forward(0, meanLossBatch([{ input_ids: IDS, labels: IDS }], true), null);
        const expected = reference().loss(IDS);
        const what = JSON.stringify(config);
        assert.ok(Math.abs(lossSum - expected) < 1e-5 * expected, `${lossSum}, expected ${expected}: ${what}`);
        await engine.backward(0, 0, null);
        for (const own of await engine.matrixNames()) {
          const [name, matrix] = [moduleOf(own), own.includes(".lora_A.") ? ("a" as const) : ("b" as const)];
          const got = await engine.getMatrix(own, "grad");
          const size = Math.sqrt(got.reduce((sum, value) => sum + value * value, 0) / got.length);
          // The largest, which a wrong place would miss, and some at random.
          const most = got.reduce((best, value, index) => (Math.abs(value) > Math.abs(got[best]!) ? index : best), 0);
          for (const index of [most, ...[1, 2, 3].map(() => Math.floor(((number01() + 1) / 2) * got.length))]) {
            const by = 1e-5;
            const up = reference({ name, matrix, index, by }).loss(IDS);
            const down = reference({ name, matrix, index, by: -by }).loss(IDS);
            const slope = (up - down) / (2 * by);
            assert.ok(
              Math.abs(got[index]! - slope) < 2e-4 * Math.abs(slope) + 2e-4 * size + 1e-7,
              `${name}.${matrix}[${index}]: ${got[index]}, expected ${slope}: ${what}`,
            );
          }
        }
        await engine.close();
      }
    });
  }
}
