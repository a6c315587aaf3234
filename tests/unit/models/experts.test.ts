import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { DEFAULT_LORA_SETTINGS, type LoraSettings } from "../../../src/common/lora-settings.ts";
import { initLora } from "../../../src/formats/lora-init.ts";
import { parseConfig } from "../../../src/models/config.ts";
import { activeParameters, expertStacks, modelExperts, storedTensors } from "../../../src/models/experts.ts";
import { deepseekExperts, moeConfig } from "../../../src/models/families/moe-config.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { holdAs, listParameters } from "../../../src/models/parameters.ts";
import { skippedLinears } from "../../../src/models/quantization.ts";
import type { ModelSpec } from "../../../src/models/spec.ts";
import { layerWork } from "../../../src/plan/time/layer-work.ts";
import { cpus, request } from "../plan/models.ts";
import { fixture } from "../shared-data.ts";

const published = JSON.parse(readFileSync(fixture("models/published.json"), "utf8")) as {
  name: string;
  parameters: number;
  config: Record<string, unknown>;
}[];
const specOf = (name: string) => modelSpecFromConfig(published.find((row) => row.name === name)!.config);

const SIZES = {
  ...{ hidden_size: 64, intermediate_size: 96, num_hidden_layers: 4, num_attention_heads: 4 },
  ...{ num_key_value_heads: 2, head_dim: 16, vocab_size: 100 },
};
const QWEN = { ...SIZES, model_type: "qwen3_moe", num_experts: 6, num_experts_per_tok: 2, moe_intermediate_size: 32 };
const GLM = {
  ...{ ...SIZES, model_type: "glm4_moe", n_routed_experts: 8, num_experts_per_tok: 3 },
  ...{ n_group: 4, topk_group: 2, moe_intermediate_size: 32 },
};
const GPT_OSS = { ...SIZES, model_type: "gpt_oss", num_local_experts: 4, num_experts_per_tok: 2 };

const resolve = (spec: ModelSpec, settings: Partial<LoraSettings>) =>
  resolveLoraTargets(spec, { ...DEFAULT_LORA_SETTINGS, targetModules: [], ...settings });

describe("what a token goes through", () => {
  // As published: gpt-oss's cards leave the embedding out, GLM's the head too, Qwen's and Mistral's round.
  for (const [name, active, less] of [
    ["Qwen/Qwen3-30B-A3B", 3.35e9, 0],
    ["Qwen/Qwen3-235B-A22B", 22.2e9, 0],
    ["Qwen/Qwen1.5-MoE-A2.7B", 2.69e9, 0],
    ["mistralai/Mixtral-8x7B-v0.1", 12.88e9, 0],
    ["openai/gpt-oss-20b", 3.61e9, 201088 * 2880],
    ["openai/gpt-oss-120b", 5.13e9, 201088 * 2880],
    ["zai-org/GLM-4.5-Air", 12.18e9, 2 * 151552 * 4096],
    ["meta-llama/Llama-4-Scout-17B-16E (text, in its checkpoint)", 17.17e9, 0],
    ["meta-llama/Llama-4-Maverick-17B-128E (text)", 17.18e9, 0],
  ] as const) {
    test(`${name}: ${active / 1e9} B of its parameters`, () => {
      const { parameters } = published.find((row) => row.name === name)!;
      const found = activeParameters(specOf(name), parameters) - less;
      assert.ok(Math.abs(found - active) < 0.01 * active, `${found}`);
    });
  }

  test("a step's work counts the experts chosen, a plan's weights all of them", () => {
    const spec = specOf("Qwen/Qwen3-30B-A3B");
    const planned = request(spec, cpus(1), { lora: [] });
    const blocks = layerWork(planned).slice(1, 49);
    const flop = blocks.reduce((sum, { forward }) => sum + forward, 0) / planned.work.meanTokens;
    const products = 2 * (activeParameters(spec, 30532122624) - 2 * 151936 * 2048);
    assert.ok(flop > products && flop < 1.5 * products, `${flop} of ${products}`);
  });
});

describe("which blocks have experts", () => {
  const sparse = (config: object) =>
    modelSpecFromConfig(config).layers.flatMap((layer) =>
      layer.kind === "block" && layer.experts !== undefined ? [layer.index] : [],
    );
  test("mlp_only_layers, decoder_sparse_step and first_k_dense_replace", () => {
    assert.deepEqual(sparse(QWEN), [0, 1, 2, 3]);
    assert.deepEqual(sparse({ ...QWEN, mlp_only_layers: [1, 3] }), [0, 2]);
    assert.deepEqual(sparse({ ...QWEN, decoder_sparse_step: 2 }), [1, 3]);
    assert.deepEqual(sparse({ ...QWEN, decoder_sparse_step: 2, mlp_only_layers: [3] }), [1]);
    assert.deepEqual(sparse({ ...GLM, first_k_dense_replace: 3 }), [3]);
    assert.deepEqual(sparse({ ...GLM, first_k_dense_replace: 9 }), []);
  });

  test("dense blocks have the dense width, others the experts'", () => {
    const spec = modelSpecFromConfig({ ...QWEN, mlp_only_layers: [1] });
    const shapes = new Map(spec.tensors.map(({ name, shape }) => [name, shape]));
    assert.deepEqual(shapes.get("model.layers.1.mlp.gate_proj.weight"), [96, 64]);
    assert.deepEqual(shapes.get("model.layers.0.mlp.experts.gate_up_proj"), [6, 64, 64]);
    assert.deepEqual(shapes.get("model.layers.0.mlp.experts.down_proj"), [6, 64, 32]);
    assert.equal(shapes.has("model.layers.0.mlp.gate_proj.weight"), false);
  });
});

describe("configurations that are refused by key", () => {
  for (const [change, base, code, message] of [
    [{ num_experts_per_tok: 7 }, QWEN, "PL_MODEL_CONFIG_INVALID", /num_experts_per_tok 7 is above/],
    [{ num_experts: 64, num_experts_per_tok: 33 }, QWEN, "PL_MODEL_UNSUPPORTED", /num_experts_per_tok/],
    [{ num_experts: 4096 }, QWEN, "PL_MODEL_CONFIG_INVALID", /num_experts/],
    [{ n_group: 3 }, GLM, "PL_MODEL_CONFIG_INVALID", /n_group 3 does not divide/],
    [{ topk_group: 5 }, GLM, "PL_MODEL_CONFIG_INVALID", /topk_group 5/],
    [{ topk_group: 1 }, GLM, "PL_MODEL_CONFIG_INVALID", /num_experts_per_tok 3 is above the 2 experts/],
    [{ n_group: 8, topk_group: 4 }, GLM, "PL_MODEL_CONFIG_INVALID", /n_group 8/],
    [{ routed_scaling_factor: -1 }, GLM, "PL_MODEL_CONFIG_INVALID", /routed_scaling_factor/],
    [{ hidden_act: "relu" }, QWEN, "PL_MODEL_UNSUPPORTED", /hidden_act/],
    [
      { hidden_size: 72, head_dim: 16, quantization_config: { quant_method: "mxfp4" } },
      GPT_OSS,
      "PL_MODEL_CONFIG_INVALID",
      /MXFP4/,
    ],
    [{ swiglu_limit: 5 }, GPT_OSS, "PL_MODEL_UNSUPPORTED", /swiglu_limit/],
    [{ router_jitter_noise: 0.1 }, { ...SIZES, model_type: "mixtral" }, "PL_MODEL_UNSUPPORTED", /router_jitter_noise/],
    [{ quantization_config: { quant_method: "mxfp4" } }, QWEN, "PL_MODEL_UNSUPPORTED", /quant_method/],
  ] as const) {
    test(JSON.stringify(change), () => {
      assert.throws(
        () => modelSpecFromConfig({ ...base, ...change }),
        (error: { code?: string; message: string }) => {
          assert.equal(error.code, code, error.message);
          return message.test(error.message);
        },
      );
    });
  }

  test("a dense family refuses experts", () => {
    assert.throws(() => modelSpecFromConfig({ ...SIZES, model_type: "llama", num_local_experts: 8 }), {
      code: "PL_MODEL_UNSUPPORTED",
    });
  });
});

describe("target_parameters, as peft has them", () => {
  const spec = modelSpecFromConfig({ ...QWEN, mlp_only_layers: [1], num_hidden_layers: 3 });

  test("both of a module's parameters nest, in the module's order whatever the list's", () => {
    for (const targetParameters of [
      ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
      ["experts.down_proj", "gate_up_proj"],
    ]) {
      const { targets } = resolve(spec, { targetModules: ["q_proj", "o_proj"], targetParameters, r: 4 });
      assert.deepEqual(
        targets
          .filter(({ layer }) => layer === 1)
          .map(({ name, r, in: input, out }) => [name.replace("model.layers.0.", ""), r, input, out]),
        [
          ["self_attn.q_proj", 4, 64, 64],
          ["self_attn.o_proj", 4, 64, 64],
          ["mlp.experts.base_layer", 24, 64, 64],
          ["mlp.experts", 24, 32, 64],
        ],
      );
      assert.deepEqual(
        targets.map(({ moduleId }) => moduleId),
        [...targets.keys()],
      );
      assert.ok(targets.every(({ scale }) => scale === 2));
    }
  });

  test("one of them has the module's own name; a router's weight is a linear's", () => {
    const { targets } = resolve(spec, {
      targetParameters: ["experts.down_proj", "mlp.gate.weight"],
      rankPattern: { "gate.weight": 3 },
    });
    assert.deepEqual(
      targets.filter(({ layer }) => layer === 3).map(({ name, r, stack }) => [name, r, stack?.experts ?? 1]),
      [
        ["model.layers.2.mlp.experts", 48, 6],
        ["model.layers.2.mlp.gate", 3, 1],
      ],
    );
  });

  test("gpt-oss's transposed parameters have the products' own ins and outs", () => {
    const { targets } = resolve(modelSpecFromConfig(GPT_OSS), { targetParameters: ["gate_up_proj"], r: 2 });
    assert.deepEqual([targets[0]!.r, targets[0]!.in, targets[0]!.out], [8, 64, 192]);
  });

  test("what can't be is refused with what to do", () => {
    const refusal = (settings: Partial<LoraSettings>) => {
      try {
        resolve(spec, settings);
      } catch (error) {
        return `${(error as { code: string }).code}: ${(error as Error).message} ${(error as { hint?: string }).hint}`;
      }
      return "taken";
    };
    assert.match(
      refusal({ targetParameters: ["mlp.experts.up_proj"] }),
      /PL_TARGET_MODULES_UNMATCHED.*mlp\.experts\.up_proj.*Did you mean mlp\.experts\.down_proj/,
    );
    assert.match(
      refusal({ targetParameters: ["experts.down_proj"], dropout: 0.1 }),
      /PL_CONFIG_INVALID.*lora_dropout 0\.1/,
    );
    assert.match(
      refusal({ targetParameters: ["input_layernorm.weight"] }),
      /PL_CONFIG_INVALID.*input_layernorm\.weight \[64\]/,
    );
    assert.match(
      refusal({ targetModules: ["q_proj"], targetParameters: ["q_proj.weight"] }),
      /PL_CONFIG_INVALID.*q_proj/,
    );
    assert.match(refusal({}), /PL_TARGET_MODULES_UNMATCHED/);
    assert.equal(refusal({ targetParameters: ["v_proj.weight"] }), "taken");
  });

  test("the list of parameters has peft's names, every one once", () => {
    const lora = resolve(spec, { targetParameters: ["gate_up_proj", "down_proj"], r: 2 });
    const { parameters, trainable, total } = listParameters(spec, holdAs("float32"), lora);
    const names = parameters.map(({ name }) => name);
    assert.equal(new Set(names).size, names.length);
    for (const name of [
      "experts.base_layer.base_layer.gate_up_proj",
      "experts.base_layer.base_layer.down_proj",
      "experts.base_layer.lora_A.default.weight",
      "experts.lora_B.default.weight",
    ]) {
      assert.ok(names.includes(`base_model.model.model.layers.0.mlp.${name}`), name);
    }
    assert.equal(trainable, 2 * 12 * (64 + 64 + 32 + 64));
    assert.equal(
      total,
      parameters.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0),
    );
  });

  test("first values spread as those of one expert's rank", () => {
    const { a } = initLora({ name: "x", r: 512, in: 64, out: 8, experts: 128 }, { initLoraWeights: "gaussian" }, 1);
    const deviation = Math.sqrt(a.reduce((sum, value) => sum + value * value, 0) / a.length);
    assert.ok(Math.abs(deviation - 1 / 4) < 0.01, `${deviation}`);
  });
});

test("a skip pattern takes whole experts, not halves of a product", () => {
  const spec = modelSpecFromConfig(QWEN);
  assert.equal(skippedLinears(spec, ["mlp.experts"]).size, 4 * 6 * 3);
  assert.throws(() => skippedLinears(spec, ["experts.3.up_proj"]), { code: "PL_CONFIG_INVALID" });
});

test("a checkpoint's names: apart, at once, or packed, whichever it holds", () => {
  for (const config of [QWEN, GLM, GPT_OSS, { ...SIZES, model_type: "mixtral" }]) {
    const spec = modelSpecFromConfig(config);
    const stacks = modelExperts(spec).flatMap(expertStacks);
    const count = (tensors: readonly { shape: readonly number[]; kind: string }[]) =>
      tensors
        .filter(({ kind }) => kind === "parameter")
        .reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
    const own = count(spec.tensors);
    for (const holds of [null, () => true, () => false]) {
      const stored = storedTensors(spec, holds);
      assert.equal(count(stored), own, String(config.model_type));
      assert.equal(new Set(stored.map(({ name }) => name)).size, stored.length);
    }
    assert.ok(stacks.length > 0);
  }
  const packed = modelSpecFromConfig({
    ...GPT_OSS,
    intermediate_size: 64,
    quantization_config: { quant_method: "mxfp4" },
  });
  const names = storedTensors(packed, null).map(({ name }) => name);
  assert.ok(names.includes("model.layers.0.mlp.experts.down_proj_blocks"));
  assert.equal(names.includes("model.layers.0.mlp.experts.down_proj"), false);
});

describe("DeepSeek's experts, for the families that have its attention", () => {
  const DEFAULTS = { count: 64, chosen: 6, ffn: 1407, shared: 2, dense: 1, factor: 1, normalise: false };
  const read = (config: object, kind: "v2" | "v3") =>
    deepseekExperts(parseConfig(moeConfig, { ...SIZES, model_type: "deepseek", ...config }), kind, DEFAULTS);

  test("V2-Lite chooses from all, V2 from the best groups by their best, V3 by their two best", () => {
    const lite = read({ n_routed_experts: 64, num_experts_per_tok: 6, topk_method: "greedy", n_group: 1 }, "v2");
    assert.equal(lite(0), null);
    assert.deepEqual(lite(1)!.route, { chosen: 6, score: "softmax", normalise: false, groups: null, factor: 1 });
    assert.deepEqual(lite(1)!.shared, { name: "shared_experts", ffn: 2814 });
    const large = {
      n_routed_experts: 160,
      num_experts_per_tok: 6,
      n_group: 8,
      topk_group: 3,
      routed_scaling_factor: 16,
    };
    const v2 = read({ ...large, topk_method: "group_limited_greedy" }, "v2")(5)!;
    assert.deepEqual(v2.route.groups, { count: 8, chosen: 3, by: "best" });
    assert.equal(v2.route.factor, 16);
    assert.equal(v2.correction, undefined);
    const huge = { n_routed_experts: 256, num_experts_per_tok: 8, n_group: 8, topk_group: 4, norm_topk_prob: true };
    const v3 = read({ ...huge, first_k_dense_replace: 3, n_shared_experts: 1, topk_method: "noaux_tc" }, "v3");
    assert.equal(v3(2), null);
    assert.deepEqual(v3(3)!.route.groups, { count: 8, chosen: 4, by: "two_best" });
    assert.deepEqual(
      [v3(3)!.route.score, v3(3)!.route.normalise, v3(3)!.correction],
      ["sigmoid", true, "e_score_correction_bias"],
    );
  });

  test("what would be computed otherwise elsewhere is refused", () => {
    for (const [config, kind] of [
      [{ topk_method: "noaux_tc" }, "v2"],
      [{ topk_method: "greedy" }, "v3"],
      [{ norm_topk_prob: true }, "v2"],
      [{ moe_layer_freq: 2 }, "v3"],
    ] as const) {
      assert.throws(() => read(config, kind), { code: "PL_MODEL_UNSUPPORTED" });
    }
  });
});
