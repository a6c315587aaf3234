import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import type { ModelSpec } from "../../../src/models/spec.ts";
import { fixture, shared } from "../shared-data.ts";

type Entry = (string | number[])[];
type Folded = Entry | { each: number; of: Entry[] };
interface Named {
  config: Record<string, unknown>;
  tensors: Folded[];
  modules: Folded[];
  no_split_module_classes: string[];
  tied: string[][];
}

/** Entries of each block are stored once, with "#" for its number. */
const unfold = (entries: Folded[]): Entry[] =>
  entries.flatMap((entry) =>
    Array.isArray(entry)
      ? [entry]
      : Array.from({ length: entry.each }, (_, block) =>
          entry.of.map(([name, ...rest]) => [(name as string).replace("#", String(block)), ...rest]),
        ).flat(),
  );

const tensorRows = (spec: ModelSpec) =>
  spec.tensors.map(({ name, shape, dtype, kind }) => [name, [...shape], dtype ?? spec.dtype, kind]);
const moduleRows = (spec: ModelSpec) => spec.modules.map(({ name, className }) => [name, className]);

const named = JSON.parse(readFileSync(fixture("models/named-models.json"), "utf8")) as Record<string, Named>;

describe("model specs", () => {
  for (const [name, expected] of Object.entries(named)) {
    test(`${name} has transformers' modules and tensors`, () => {
      const spec = modelSpecFromConfig(expected.config);
      assert.deepEqual(tensorRows(spec), unfold(expected.tensors));
      assert.deepEqual(moduleRows(spec), unfold(expected.modules));
      assert.deepEqual(spec.noSplitModuleClasses, expected.no_split_module_classes);
      assert.deepEqual(spec.tied, expected.tied);
    });

    test(`${name}: every layer's tensors exist with the shapes its linears state`, () => {
      const spec = modelSpecFromConfig(expected.config);
      const shapes = new Map(spec.tensors.map((tensor) => [tensor.name, tensor.shape]));
      for (const layer of spec.layers) {
        if (layer.kind !== "block") {
          assert.ok(shapes.has(layer.weight), layer.weight);
          continue;
        }
        for (const linear of layer.linears) {
          assert.deepEqual(shapes.get(`${linear.name}.weight`), [linear.out, linear.in]);
          assert.equal(shapes.has(`${linear.name}.bias`), linear.bias);
        }
      }
    });
  }

  test("the folded fixture equals the full golden", { skip: shared("goldens/placements/models.json") === null }, () => {
    const golden = JSON.parse(readFileSync(shared("goldens/placements/models.json")!, "utf8")) as Record<string, Named>;
    for (const [name, expected] of Object.entries(golden)) {
      const spec = modelSpecFromConfig(named[name]!.config);
      assert.deepEqual(tensorRows(spec), expected.tensors);
      assert.deepEqual(moduleRows(spec), expected.modules);
    }
  });

  test("Qwen v1: numbers that placement, engine and loss read", () => {
    const spec = modelSpecFromConfig(named["qwen-7b"]!.config, { eos_token_id: 151643 });
    assert.deepEqual(spec.shape, {
      hidden: 4096,
      heads: 32,
      kvHeads: 32,
      headDim: 128,
      ffn: 11008,
      vocab: 151936,
      blocks: 32,
      rmsEps: 1e-6,
    });
    assert.equal(spec.lossRule, "micro-batch-mean");
    assert.equal(spec.dtype, "bfloat16");
    assert.deepEqual(spec.rules.qwenLong, { seqLength: 8192, dynamicNtk: true, logn: true });
    assert.deepEqual(spec.eosTokenIds, [151643]);
    assert.equal(spec.layers.length, 35);
    const block = spec.layers[1]!;
    assert.equal(block.kind, "block");
    assert.deepEqual(
      block.kind === "block" && block.linears.map(({ role, in: input, out, bias }) => [role, input, out, bias]),
      [
        ["qkv", 4096, 12288, true],
        ["o", 4096, 4096, false],
        ["up", 4096, 11008, false],
        ["gate", 4096, 11008, false],
        ["down", 11008, 4096, false],
      ],
    );
  });

  test("Qwen3 norms each head and has its own head width", () => {
    const spec = modelSpecFromConfig({
      architectures: ["Qwen3ForCausalLM"],
      model_type: "qwen3",
      hidden_size: 1024,
      intermediate_size: 3072,
      num_hidden_layers: 2,
      num_attention_heads: 16,
      num_key_value_heads: 8,
      head_dim: 128,
      vocab_size: 151936,
      tie_word_embeddings: true,
      rope_theta: 1000000,
      torch_dtype: "bfloat16",
    });
    const names = spec.tensors
      .filter(({ name }) => name.startsWith("model.layers.1."))
      .map(({ name, shape }) => [name, shape]);
    assert.deepEqual(names.slice(0, 6), [
      ["model.layers.1.self_attn.q_proj.weight", [2048, 1024]],
      ["model.layers.1.self_attn.k_proj.weight", [1024, 1024]],
      ["model.layers.1.self_attn.v_proj.weight", [1024, 1024]],
      ["model.layers.1.self_attn.o_proj.weight", [1024, 2048]],
      ["model.layers.1.self_attn.q_norm.weight", [128]],
      ["model.layers.1.self_attn.k_norm.weight", [128]],
    ]);
    const block = spec.layers[2]!;
    assert.equal(block.kind === "block" && block.qNorm, "model.layers.1.self_attn.q_norm.weight");
    assert.deepEqual(spec.layers.at(-1), {
      kind: "head",
      name: "lm_head",
      weight: "model.embed_tokens.weight",
      tied: true,
    });
  });

  test("windows: Mistral's on every block, Qwen2's from max_window_layers on", () => {
    const common = {
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: 3,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      vocab_size: 100,
    };
    const windows = (config: Record<string, unknown>) =>
      modelSpecFromConfig({ ...common, ...config }).layers.flatMap((layer) =>
        layer.kind === "block" ? [layer.slidingWindow] : [],
      );
    assert.deepEqual(windows({ model_type: "mistral", sliding_window: 32 }), [32, 32, 32]);
    assert.deepEqual(windows({ model_type: "mistral", sliding_window: null }), [null, null, null]);
    assert.deepEqual(windows({ model_type: "mistral" }), [4096, 4096, 4096]);
    const qwen2 = { model_type: "qwen2", use_sliding_window: true, sliding_window: 16 };
    assert.deepEqual(windows({ ...qwen2, max_window_layers: 2 }), [null, null, 16]);
    assert.deepEqual(windows({ ...qwen2, max_window_layers: 0, use_sliding_window: false }), [null, null, null]);
    const types = ["sliding_attention", "full_attention", "sliding_attention"];
    assert.deepEqual(windows({ ...qwen2, layer_types: types }), [16, null, 16]);
  });

  test("biases follow attention_bias, mlp_bias and Qwen's no_bias", () => {
    const llama = {
      model_type: "llama",
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: 1,
      num_attention_heads: 4,
      vocab_size: 100,
      attention_bias: true,
      mlp_bias: true,
    };
    const biases = (config: unknown) =>
      modelSpecFromConfig(config)
        .tensors.filter(({ name }) => name.endsWith(".bias"))
        .map(({ name }) => name.split(".").at(-2));
    assert.deepEqual(biases(llama), ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    assert.deepEqual(biases({ ...llama, mlp_bias: false }), ["q_proj", "k_proj", "v_proj", "o_proj"]);
    const qwen = { ...named["qwen-7b"]!.config, num_hidden_layers: 1, no_bias: false };
    assert.deepEqual(biases(qwen), ["c_attn", "c_proj", "w1", "w2", "c_proj"]);
  });

  for (const folder of [
    "data/qwen-7b-chat",
    "data/stories260k",
    "goldens/training/qwen2-gqa-tied/model",
    "goldens/inference/qwen1-long/model",
  ]) {
    const path = shared(folder);
    test(`${folder} is read`, { skip: path === null }, async () => {
      assert.ok(existsSync(join(path!, "config.json")));
      const { readModelSpec } = await import("../../../src/models/index.ts");
      const spec = await readModelSpec(path!);
      assert.ok(spec.tensors.length > 0);
    });
  }
});
