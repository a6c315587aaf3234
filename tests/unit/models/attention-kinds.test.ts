import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { elementCount } from "../../../src/common/dtype.ts";
import { PipeloraError } from "../../../src/common/errors.ts";
import { activeParameters } from "../../../src/models/experts.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { holdAs, listParameters } from "../../../src/models/parameters.ts";
import { blockLinears, skippedLinears } from "../../../src/models/quantization.ts";
import type { ModelSpec } from "../../../src/models/spec.ts";
import { fixture } from "../shared-data.ts";

const count = (spec: ModelSpec, part = "") =>
  spec.tensors
    .filter(({ kind, name }) => kind === "parameter" && name.includes(part))
    .reduce((sum, { shape }) => sum + elementCount(shape), 0);

const golden = fixture("goldens/qwen3-5");
const goldenConfig = JSON.parse(readFileSync(join(golden, "model", "config.json"), "utf8")) as Record<string, unknown>;

describe("gated delta nets", () => {
  test("Qwen3.5's LoRA parameters, in the order that peft's named_parameters has them", () => {
    const { trainable_names, trainable_params } = JSON.parse(readFileSync(join(golden, "expected.json"), "utf8")) as {
      trainable_names: string[];
      trainable_params: number;
    };
    const spec = modelSpecFromConfig(goldenConfig);
    const lora = resolveLoraTargets(spec, {
      ...{ r: 4, alpha: 8, dropout: 0, targetModules: "all-linear", excludeModules: null, layersToTransform: null },
      ...{ layersPattern: null, rankPattern: {}, alphaPattern: {}, useRslora: false, useDora: false },
      ...{ modulesToSave: null, initLoraWeights: true, bias: "none", trainableTokenIndices: null },
    } as unknown as Parameters<typeof resolveLoraTargets>[1]);
    const listed = listParameters(spec, holdAs("float32"), lora);
    assert.deepEqual(
      listed.parameters.filter(({ trainable }) => trainable).map(({ name }) => name.replace(".default.", ".")),
      trainable_names,
    );
    assert.equal(listed.trainable, trainable_params);
  });

  test("Qwen3-Next-80B-A3B without its experts has what the published count leaves for that", () => {
    const spec = modelSpecFromConfig({
      ...{ model_type: "qwen3_next", hidden_size: 2048, intermediate_size: 5120, num_hidden_layers: 48 },
      ...{ num_attention_heads: 16, num_key_value_heads: 2, head_dim: 256, vocab_size: 151936, num_experts: 0 },
      ...{ linear_num_key_heads: 16, linear_num_value_heads: 32, linear_key_head_dim: 128, linear_value_head_dim: 128 },
      ...{ linear_conv_kernel_dim: 4, full_attention_interval: 4, rope_theta: 10000000, partial_rotary_factor: 0.25 },
    });
    // 512 experts and a shared one of width 512, a router, and the shared one's gate.
    const experts = 48 * (513 * 3 * 2048 * 512 + 512 * 2048 + 2048);
    assert.equal(count(spec) - count(spec, ".mlp.") + experts, 79_674_391_296);
    const published = JSON.parse(readFileSync(fixture("models/published.json"), "utf8")) as {
      name: string;
      config: object;
    }[];
    const whole = modelSpecFromConfig(published.find(({ name }) => name.endsWith("Next-80B-A3B-Instruct"))!.config);
    assert.equal(activeParameters(whole, count(whole)), 3_874_929_408);
    const kinds = spec.layers.flatMap((layer) => (layer.kind === "block" ? [layer.attention.kind] : []));
    assert.equal(kinds.filter((kind) => kind === "softmax").length, 12);
    assert.deepEqual(kinds.slice(0, 5), ["delta", "delta", "delta", "softmax", "delta"]);
  });

  test("bitsandbytes quantises every linear, and neither the convolution nor the head", () => {
    const spec = modelSpecFromConfig(goldenConfig);
    const leaves = new Set(blockLinears(spec).map(({ name }) => name.split(".").at(-1)));
    assert.deepEqual([...leaves].sort(), [
      ...["down_proj", "gate_proj", "in_proj_a", "in_proj_b", "in_proj_qkv", "in_proj_z", "k_proj", "o_proj"],
      ...["out_proj", "q_proj", "up_proj", "v_proj"],
    ]);
    // Projections that run as one product are left out together.
    assert.throws(() => skippedLinears(spec, ["in_proj_a"]), /in_proj_a.*in_proj_qkv/);
    assert.equal(skippedLinears(spec, ["linear_attn"]).size, 15);
  });

  const tiny = { ...goldenConfig, architectures: null, layer_types: undefined };
  const refused: [settings: Record<string, unknown>, key: RegExp][] = [
    [{ attn_output_gate: false }, /attn_output_gate/],
    [{ hidden_act: "gelu" }, /hidden_act/],
    [{ linear_num_value_heads: 5 }, /linear_num_value_heads 5/],
    [{ linear_conv_kernel_dim: 1 }, /linear_conv_kernel_dim/],
    [{ linear_conv_kernel_dim: 17 }, /linear_conv_kernel_dim/],
    [{ linear_key_head_dim: 0 }, /linear_key_head_dim/],
    [{ num_experts: 4 }, /num_experts/],
    [{ layer_types: ["linear_attention", "sliding_attention", "full_attention", "full_attention"] }, /layer_types/],
    [{ layer_types: ["linear_attention"] }, /layer_types has 1 entries/],
    [{ attention_dropout: 0.1 }, /attention_dropout/],
  ];
  for (const [settings, key] of refused) {
    test(`refused by key: ${JSON.stringify(settings)}`, () => {
      assert.throws(
        () => modelSpecFromConfig({ ...tiny, ...settings }),
        (error) => error instanceof PipeloraError && key.test(error.message),
      );
    });
  }

  test("without layer_types every full_attention_interval-th block sees all keys", () => {
    const kinds = (interval: number) =>
      modelSpecFromConfig({ ...tiny, num_hidden_layers: 6, full_attention_interval: interval }).layers.flatMap(
        (layer) => (layer.kind === "block" ? [layer.attention.kind === "softmax"] : []),
      );
    for (const interval of [1, 2, 3, 5]) {
      assert.deepEqual(
        kinds(interval),
        Array.from({ length: 6 }, (_, block) => (block + 1) % interval === 0),
      );
    }
  });
});

/** As DeepSeek-V2 published it; not the square root of a half. */
const MSCALE = Number("0.707");

describe("latent attention", () => {
  const lite = {
    ...{ model_type: "deepseek_v2", hidden_size: 2048, intermediate_size: 10944, num_hidden_layers: 27 },
    ...{ num_attention_heads: 16, num_key_value_heads: 16, vocab_size: 102400, q_lora_rank: null, kv_lora_rank: 512 },
    ...{ qk_nope_head_dim: 128, qk_rope_head_dim: 64, v_head_dim: 128, rms_norm_eps: 1e-6, rope_theta: 10000 },
    ...{ first_k_dense_replace: 27, n_routed_experts: 64, max_position_embeddings: 163840 },
    rope_scaling: {
      ...{ type: "yarn", factor: 40, beta_fast: 32, beta_slow: 1, mscale: MSCALE, mscale_all_dim: MSCALE },
      original_max_position_embeddings: 4096,
    },
  };

  test("DeepSeek-V2-Lite's attention, without its experts, has what the published count leaves for that", () => {
    const spec = modelSpecFromConfig(lite);
    // One dense block; 64 experts and two shared ones of width 1408, and a router, in 26.
    const forward = 3 * 2048 * 10944 + 26 * (66 * 3 * 2048 * 1408 + 64 * 2048);
    assert.equal(count(spec) - count(spec, ".mlp.") + forward, 15_706_484_224);
    const attention = 2048 * 3072 + 2048 * 576 + 512 + 512 * 4096 + 2048 * 2048;
    assert.equal(count(spec, "layers.3.self_attn."), attention);
  });

  test("scores are scaled by yarn's mscale squared; cos and sin are not", () => {
    const { scale, rotary, rotaryInterleaved } = modelSpecFromConfig(lite).rules;
    const mscale = 0.1 * MSCALE * Math.log(40) + 1;
    assert.ok(Math.abs(scale.scores! - mscale ** 2 / Math.sqrt(192)) < 1e-12);
    assert.equal(rotary[0]!.attentionScaling, 1);
    assert.equal(rotary[0]!.invFreq.length, 32);
    assert.equal(rotaryInterleaved, true);
    const plain = modelSpecFromConfig({ ...lite, rope_scaling: null }).rules.scale.scores;
    assert.equal(plain, 192 ** -0.5);
  });

  test("with q_lora_rank q comes over a latent vector too, and biases are where DeepSeek has them", () => {
    const spec = modelSpecFromConfig({ ...lite, q_lora_rank: 24, attention_bias: true, rope_interleave: false });
    // Only DeepSeek-V3's code reads rope_interleave.
    assert.equal(spec.rules.rotaryInterleaved, true);
    const block = spec.layers.find((layer) => layer.kind === "block")!;
    const own = block.linears.map(({ role, in: input, out, bias }) => [role, input, out, bias]).slice(0, 5);
    assert.deepEqual(own, [
      ["q_a", 2048, 24, true],
      ["q_b", 24, 3072, false],
      ["kv_a", 2048, 576, true],
      ["kv_b", 512, 4096, false],
      ["o", 2048, 2048, true],
    ]);
    const names = spec.tensors.map(({ name }) => name).filter((name) => name.startsWith("model.layers.0.self_attn."));
    assert.deepEqual(
      names.map((name) => name.slice("model.layers.0.self_attn.".length)),
      [
        ...["q_a_proj.weight", "q_a_proj.bias", "q_a_layernorm.weight", "q_b_proj.weight"],
        ...["kv_a_proj_with_mqa.weight", "kv_a_proj_with_mqa.bias", "kv_a_layernorm.weight", "kv_b_proj.weight"],
        ...["o_proj.weight", "o_proj.bias"],
      ],
    );
  });

  const refused: [settings: Record<string, unknown>, key: RegExp][] = [
    [{ topk_method: "noaux_tc" }, /topk_method/],
    [{ norm_topk_prob: true }, /norm_topk_prob/],
    [{ scoring_func: "sigmoid" }, /scoring_func/],
    [{ moe_layer_freq: 2 }, /moe_layer_freq/],
    [{ num_experts_per_tok: 65 }, /num_experts_per_tok/],
    [{ topk_method: "group_limited_greedy", n_group: 7 }, /n_group/],
    [{ mlp_bias: true }, /mlp_bias/],
    [{ model_type: "deepseek_v3", topk_method: "greedy" }, /topk_method/],
    [{ model_type: "deepseek_v3", scoring_func: "softmax" }, /scoring_func/],
    [{ qk_rope_head_dim: 7 }, /qk_rope_head_dim|columns|odd/],
    [{ kv_lora_rank: 0 }, /kv_lora_rank/],
  ];
  for (const [settings, key] of refused) {
    test(`refused by key: ${JSON.stringify(settings)}`, () => {
      assert.throws(
        () => modelSpecFromConfig({ ...lite, first_k_dense_replace: 1, ...settings }),
        (error) => error instanceof PipeloraError && key.test(error.message),
      );
    });
  }

  test("blocks behind first_k_dense_replace have experts, and none without any", () => {
    const sparse = (settings: Record<string, unknown>) =>
      modelSpecFromConfig({ ...lite, num_hidden_layers: 4, ...settings }).layers.flatMap((layer) =>
        layer.kind === "block" ? [layer.experts !== undefined] : [],
      );
    assert.deepEqual(sparse({ first_k_dense_replace: 1 }), [false, true, true, true]);
    assert.deepEqual(sparse({ first_k_dense_replace: 0 }), [true, true, true, true]);
    assert.deepEqual(sparse({ first_k_dense_replace: 9 }), [false, false, false, false]);
    assert.deepEqual(sparse({ first_k_dense_replace: 1, n_routed_experts: null }), [false, false, false, false]);
  });
});
