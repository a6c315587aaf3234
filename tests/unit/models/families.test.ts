import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { elementCount } from "../../../src/common/dtype.ts";
import { PipeloraError } from "../../../src/common/errors.ts";
import { DEFAULT_LORA_SETTINGS } from "../../../src/common/lora-settings.ts";
import { blockVectors } from "../../../src/models/block-vectors.ts";
import { FAMILIES } from "../../../src/models/families/index.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { makePlan } from "../../../src/plan/index.ts";
import { everyLinear, gpus, request } from "../plan/models.ts";
import { fixture } from "../shared-data.ts";

interface Published {
  readonly name: string;
  readonly parameters: number;
  readonly config: Record<string, unknown>;
}
const published = JSON.parse(readFileSync(fixture("models/published.json"), "utf8")) as Published[];

describe("published checkpoints", () => {
  for (const { name, parameters, config } of published) {
    test(`${name}: its published count of parameters, and a plan`, () => {
      const spec = modelSpecFromConfig(config);
      const own = spec.tensors.filter(({ kind }) => kind === "parameter");
      assert.equal(
        own.reduce((sum, { shape }) => sum + elementCount(shape), 0),
        parameters,
      );
      assert.equal(new Set(own.map(({ name: tensor }) => tensor)).size, own.length);
      const listed = new Set(own.map(({ name: tensor }) => tensor));
      for (const layer of spec.layers) {
        if (layer.kind !== "block") continue;
        for (const { name: linear, in: input, out } of layer.linears) {
          const weight = own.find((tensor) => tensor.name === `${linear}.weight`)!;
          assert.deepEqual(weight.shape, [out, input]);
        }
        for (const vector of blockVectors(spec, layer)) assert.ok(listed.has(vector.name), vector.name);
      }
      const plan = makePlan(request(spec, gpus(parameters > 3e11 ? 32 : 8), { lora: everyLinear(spec, 8, 0) }));
      const segments = plan.devices.flatMap((device) => device.segments);
      assert.ok(segments.length > 0);
    });
  }

  test("there is a row of every family, but for those of which no count is at hand", () => {
    const rows = new Set(published.map(({ config }) => config["model_type"]));
    const missing = Object.keys(FAMILIES).filter((family) => !rows.has(family));
    assert.deepEqual(missing.sort(), ["cohere2", "gemma3", "hunyuan_v1_dense", "ministral3", "mistral3", "qwen"]);
  });
});

const sizes = {
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  vocab_size: 100,
};

describe("settings that a family does not have are refused by key", () => {
  const cases: [family: string, settings: Record<string, unknown>, key: string][] = [
    ["llama", { attn_logit_softcapping: 50 }, "attn_logit_softcapping"],
    ["llama", { final_logit_softcapping: 30 }, "final_logit_softcapping"],
    ["llama", { logits_scaling: 8 }, "logits_scaling"],
    ["llama", { residual_multiplier: 0.2 }, "residual_multiplier"],
    ["llama", { no_rope_layers: [1, 1, 1, 0] }, "no_rope_layers"],
    ["llama", { attention_chunk_size: 8192 }, "attention_chunk_size"],
    ["llama", { attn_temperature_tuning: true }, "attn_temperature_tuning"],
    ["mistral", { moe_layers: [1] }, "moe_layers"],
    ["llama4_text", { layer_types: Array(4).fill("sliding_attention") }, "layer_types"],
    ["llama4_text", { interleave_moe_layer_step: 0 }, "interleave_moe_layer_step"],
    ["llama4_text", { router_jitter_noise: 0.1 }, "router_jitter_noise"],
    ["llama4_text", { num_experts_per_tok: 33, num_local_experts: 64 }, "num_experts_per_tok"],
    ["mistral", { query_pre_attn_scalar: 256 }, "query_pre_attn_scalar"],
    ["gemma", { attn_logit_softcapping: 50 }, "attn_logit_softcapping"],
    ["gemma2", { n_routed_experts: 8 }, "n_routed_experts"],
    ["gemma2", { partial_rotary_factor: 0.5 }, "partial_rotary_factor"],
    ["gemma2", { layer_types: ["full_attention", "chunked_attention", "full_attention", "x"] }, "layer_types"],
    ["gemma2", { hidden_activation: "relu" }, "hidden_activation"],
    ["gemma3_text", { use_bidirectional_attention: true }, "use_bidirectional_attention"],
    ["phi3", { embd_pdrop: 0.1 }, "embd_pdrop"],
    ["phi3", { rope_scaling: { type: "dynamic", factor: 2 } }, "rope_type"],
    ["granite", { num_local_experts: 32 }, "num_local_experts"],
    ["cohere2", { use_qk_norm: true }, "use_qk_norm"],
    ["seed_oss", { residual_dropout: 0.1 }, "residual_dropout"],
    ["exaone4", { sliding_window_pattern: "LXG" }, "sliding_window_pattern"],
    ["hunyuan_v1_dense", { num_experts: 16 }, "num_experts"],
    ["internlm2", { rope_scaling: { type: "dynamic" } }, "factor"],
    ["internlm2", { rope_scaling: { type: "longrope" } }, "short_factor"],
    ["llama", { rope_scaling: { type: "dynamic", alpha: 1000 } }, "rope_scaling.alpha"],
    ["llama", { is_causal: false }, "is_causal"],
    ["qwen3", { per_layer_config: { "0": { num_attention_heads: 2 } } }, "per_layer_config"],
    ["gemma3_text", { attn_logit_softcapping: 50 }, "attn_logit_softcapping"],
    ["minicpm", { num_experts: 8 }, "num_experts"],
    ["baichuan", { architectures: ["BaichuanForCausalLM"], max_position_embeddings: 4096 }, "architectures"],
  ];
  for (const [family, settings, key] of cases) {
    test(`${family}: ${JSON.stringify(settings)}`, () => {
      assert.throws(
        () => modelSpecFromConfig({ model_type: family, ...sizes, ...settings }),
        (error: unknown) =>
          error instanceof PipeloraError &&
          ["PL_MODEL_UNSUPPORTED", "PL_MODEL_CONFIG_INVALID"].includes(error.code) &&
          new RegExp(key).test(error.message),
      );
    });
  }
});

describe("Llama 4", () => {
  const LLAMA4 = { ...sizes, model_type: "llama4_text", intermediate_size_mlp: 96 };
  const blocks = (settings: Record<string, unknown> = {}) =>
    modelSpecFromConfig({ ...LLAMA4, ...settings }).layers.filter((layer) => layer.kind === "block");

  test("positions, chunks and norms of q and k by block", () => {
    const seen = (settings: Record<string, unknown>) =>
      blocks(settings).map(({ rotary, chunked = false, plainHeadNorms = false }) => [rotary, chunked, plainHeadNorms]);
    const turning = [0, true, true];
    const plain = [null, false, false];
    assert.deepEqual(seen({}), [turning, turning, turning, plain]);
    assert.deepEqual(seen({ no_rope_layers: [] }), [turning, turning, turning, plain]);
    assert.deepEqual(seen({ no_rope_layers: [0, 1, 1, 0, 1, 1] }), [plain, turning, turning, plain]);
    assert.deepEqual(seen({ no_rope_layer_interval: 2, use_qk_norm: false }), [
      [0, true, false],
      plain,
      [0, true, false],
      plain,
    ]);
    const types = ["full_attention", "chunked_attention", "full_attention", "chunked_attention"];
    assert.deepEqual(seen({ layer_types: types }), [
      [0, false, true],
      [0, true, true],
      [0, false, true],
      [null, true, false],
    ]);
  });

  test("rules of chunks and of queries' factors, and what contradicts itself", () => {
    const rules = (settings: Record<string, unknown>) => modelSpecFromConfig({ ...LLAMA4, ...settings }).rules;
    assert.equal(rules({}).attentionChunk, 8192);
    assert.equal(rules({ attention_chunk_size: 12 }).attentionChunk, 12);
    const full = { layer_types: Array(4).fill("full_attention"), attention_chunk_size: null };
    assert.equal(rules(full).attentionChunk, null);
    assert.throws(() => rules({ attention_chunk_size: null }), /PL_MODEL_CONFIG_INVALID|attention_chunk_size is null/);
    assert.throws(() => rules({ no_rope_layers: [1] }), /no_rope_layers has 1 entries/);
    assert.deepEqual(rules({}).queryScale, { beta: 0.1, length: 8192, first: 1, blocks: "unturned" });
    assert.deepEqual(rules({ attn_temperature_tuning: 4, floor_scale: 16, attn_scale: 0.5 }).queryScale, {
      ...{ beta: 0.5, length: 16, first: 1, blocks: "unturned" },
    });
    for (const off of [false, 0]) assert.equal(rules({ attn_temperature_tuning: off }).queryScale, null);
  });

  test("blocks of experts, and widths of each kind", () => {
    const down = (linears: readonly { readonly role: string; readonly in: number }[] = []) =>
      linears.find(({ role }) => role === "down")?.in ?? null;
    const widths = (settings: Record<string, unknown>) =>
      blocks(settings).map(({ linears, experts }) => [down(linears), down(experts?.linears)]);
    const [mixed, dense] = [
      [128, 128],
      [96, null],
    ];
    assert.deepEqual(widths({}), [mixed, mixed, mixed, mixed]);
    assert.deepEqual(widths({ interleave_moe_layer_step: 2 }), [dense, mixed, dense, mixed]);
    assert.deepEqual(widths({ interleave_moe_layer_step: 3 }), [dense, dense, mixed, dense]);
    assert.deepEqual(widths({ moe_layers: [3, 0], interleave_moe_layer_step: 2 }), [mixed, dense, dense, mixed]);
    // Llama Guard 4.
    const guard = { moe_layers: [], interleave_moe_layer_step: 0, num_local_experts: 0 };
    assert.deepEqual(widths(guard), [dense, dense, dense, dense]);
    assert.throws(() => widths({ num_local_experts: 0 }), /num_local_experts is 0/);
  });

  test("pairs of experts as peft has them: A as wide as what the parameter gives", () => {
    const spec = modelSpecFromConfig({ ...LLAMA4, num_local_experts: 3 });
    const { matrices } = resolveLoraTargets(spec, {
      ...{ ...DEFAULT_LORA_SETTINGS, r: 2, targetModules: [] },
      targetParameters: ["experts.gate_up_proj", "experts.down_proj"],
    });
    const at = "model.layers.0.feed_forward.experts";
    const shapes = Object.fromEntries(matrices.slice(0, 4).map(({ name, shape }) => [name, shape]));
    assert.deepEqual(shapes, {
      [`${at}.base_layer.lora_A.weight`]: [6, 256],
      [`${at}.base_layer.lora_B.weight`]: [64, 6],
      [`${at}.lora_A.weight`]: [6, 64],
      [`${at}.lora_B.weight`]: [128, 6],
    });
  });
});

describe("what a family's blocks are", () => {
  const spec = (family: string, settings: Record<string, unknown> = {}) =>
    modelSpecFromConfig({ model_type: family, ...sizes, ...settings });
  const blocks = (family: string, settings: Record<string, unknown> = {}) =>
    spec(family, settings).layers.filter((layer) => layer.kind === "block");

  test("windows and positions by layer", () => {
    const seen = (family: string, settings: Record<string, unknown>) =>
      blocks(family, settings).map(({ slidingWindow, rotary }) => [slidingWindow, rotary]);
    assert.deepEqual(seen("gemma2", { sliding_window: 8 }), [
      [8, 0],
      [null, 0],
      [8, 0],
      [null, 0],
    ]);
    assert.deepEqual(seen("gemma3_text", { sliding_window: 8, sliding_window_pattern: 2 }), [
      [8, 1],
      [null, 0],
      [8, 1],
      [null, 0],
    ]);
    assert.deepEqual(seen("cohere2", { sliding_window: 8 }), [
      [8, 0],
      [8, 0],
      [8, 0],
      [null, null],
    ]);
    assert.deepEqual(seen("exaone4", { sliding_window: 8, sliding_window_pattern: "LG" }), [
      [8, 0],
      [null, null],
      [8, 0],
      [null, null],
    ]);
    assert.deepEqual(seen("exaone4", { sliding_window: null }), Array(4).fill([null, 0]));
    assert.deepEqual(seen("smollm3", {}), [
      [null, 0],
      [null, 0],
      [null, 0],
      [null, null],
    ]);
    assert.deepEqual(
      seen("smollm3", { no_rope_layers: [0, 1, 0, 1] }).map(([, rotary]) => rotary),
      [null, 0, null, 0],
    );
  });

  test("Gemma 3's layer types have frequencies of their own; linear scaling is the full ones' alone", () => {
    const { rotary } = spec("gemma3_text", {
      rope_theta: 1000000,
      rope_local_base_freq: 10000,
      rope_scaling: { rope_type: "linear", factor: 8 },
    }).rules;
    assert.deepEqual(
      rotary.map(({ base }) => base),
      [1000000, 10000],
    );
    assert.equal(rotary[0]!.invFreq[0], 1 / 8);
    assert.equal(rotary[1]!.invFreq[0], 1);
  });

  test("Phi-3's longrope: two lists, one factor on cos and sin", () => {
    const scaling = { type: "longrope", short_factor: Array(6).fill(1), long_factor: Array(6).fill(2) };
    const { rotary } = spec("phi3", {
      partial_rotary_factor: 0.75,
      rope_scaling: scaling,
      max_position_embeddings: 131072,
      original_max_position_embeddings: 4096,
    }).rules;
    assert.equal(rotary[0]!.invFreq.length, 6);
    assert.deepEqual(rotary[0]!.long!.from, 4096);
    assert.equal(rotary[0]!.long!.invFreq[0], 0.5);
    // sqrt(1 + ln(32) / ln(4096))
    assert.ok(Math.abs(rotary[0]!.attentionScaling - 1.1902380714238083) < 1e-12);
    assert.throws(() => spec("phi3", { rope_scaling: scaling }), /short_factor has 6 entries, expected 8/);
  });

  test("InternLM2's dynamic NTK: a base of its own for each row past the trained length", () => {
    const { rotary } = spec("internlm2", {
      rope_scaling: { type: "dynamic", factor: 2 },
      max_position_embeddings: 64,
    }).rules;
    assert.deepEqual(rotary[0]!.dynamic, { from: 64, factor: 2 });
  });

  test("Ministral 3's defaults: yarn, queries scaled past the trained length; Gemma's activation under either name", () => {
    const { rules } = spec("ministral3", { head_dim: 16 });
    assert.deepEqual(rules.queryScale, { beta: 0.1, length: 16384, first: 0, blocks: "all" });
    assert.equal(rules.rotary[0]!.attentionScaling, 1);
    assert.equal(spec("gemma").rules.activation, "gelu_tanh");
    assert.equal(spec("gemma", { hidden_act: "gelu_pytorch_tanh" }).rules.activation, "gelu_tanh");
    assert.equal(spec("gemma", { hidden_act: "silu" }).rules.activation, "silu");
    assert.equal(
      spec("gemma", { hidden_act: "gelu", hidden_activation: "gelu_pytorch_tanh" }).rules.activation,
      "gelu_tanh",
    );
  });

  test("all-linear gives every linear of a block and leaves the head out, fused ones as one", () => {
    const leaves = (family: string) => {
      const targets = resolveLoraTargets(spec(family), {
        ...{ r: 4, alpha: 8, dropout: 0, targetModules: "all-linear", excludeModules: null, layersToTransform: null },
        ...{ layersPattern: null, rankPattern: {}, alphaPattern: {}, useRslora: false, useDora: false },
        ...{ modulesToSave: null, initLoraWeights: true, bias: "none", trainableTokenIndices: null },
      } as unknown as Parameters<typeof resolveLoraTargets>[1]).targets;
      return [...new Set(targets.map(({ name }) => name.split(".").at(-1)))].sort();
    };
    assert.deepEqual(leaves("phi3"), ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]);
    assert.deepEqual(leaves("glm4"), ["down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj"]);
    assert.deepEqual(leaves("internlm2"), ["w1", "w2", "w3", "wo", "wqkv"]);
    assert.deepEqual(leaves("gemma3_text"), [
      "down_proj",
      "gate_proj",
      "k_proj",
      "o_proj",
      "q_proj",
      "up_proj",
      "v_proj",
    ]);
  });
});
