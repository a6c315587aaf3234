import assert from "node:assert/strict";
import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { PipeloraError } from "../../../src/common/errors.ts";
import { modelSpecFromConfig, readModelSpec } from "../../../src/models/index.ts";

const llama = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 100,
};
const qwen = {
  model_type: "qwen",
  hidden_size: 64,
  intermediate_size: 256,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  kv_channels: 16,
  vocab_size: 320,
  seq_length: 64,
};

const rejected: [string, object, string, RegExp][] = [
  [
    "an unknown family",
    { ...llama, model_type: "mamba2" },
    "PL_MODEL_UNSUPPORTED",
    /mamba2.*qwen, qwen2, qwen3, .*llama, llama4_text, llama4, mistral/,
  ],
  [
    "another task",
    { ...llama, architectures: ["LlamaForSequenceClassification"] },
    "PL_MODEL_UNSUPPORTED",
    /LlamaForCausalLM/,
  ],
  [
    "family and class at odds",
    { ...llama, architectures: ["Qwen2ForCausalLM"] },
    "PL_MODEL_CONFIG_INVALID",
    /Qwen2ForCausalLM/,
  ],
  ["an unknown activation", { ...llama, hidden_act: "relu2" }, "PL_MODEL_UNSUPPORTED", /hidden_act.*relu2.*silu/],
  ["experts", { ...llama, num_local_experts: 8 }, "PL_MODEL_UNSUPPORTED", /num_local_experts/],
  ["partial rotary", { ...llama, partial_rotary_factor: 0.5 }, "PL_MODEL_UNSUPPORTED", /partial_rotary_factor/],
  ["dropout in the base", { ...llama, attention_dropout: 0.1 }, "PL_MODEL_UNSUPPORTED", /attention_dropout/],
  ["packed weights", { ...llama, quantization_config: { quant_method: "gptq" } }, "PL_MODEL_UNSUPPORTED", /gptq/],
  [
    "unknown rotary scaling",
    { ...llama, rope_scaling: { rope_type: "proportional" } },
    "PL_MODEL_UNSUPPORTED",
    /rope_type.*proportional.*default, linear, llama3, yarn/,
  ],
  [
    "dynamic rotary scaling without a factor",
    { ...llama, rope_scaling: { type: "dynamic" } },
    "PL_MODEL_CONFIG_INVALID",
    /dynamic.*factor/,
  ],
  [
    "llama3 without its keys",
    { ...llama, rope_scaling: { rope_type: "llama3", factor: 8 } },
    "PL_MODEL_CONFIG_INVALID",
    /low_freq_factor/,
  ],
  ["a dtype of another kind", { ...llama, torch_dtype: "float8_e4m3fn" }, "PL_MODEL_UNSUPPORTED", /float8/],
  ["heads that don't divide", { ...llama, num_key_value_heads: 3 }, "PL_MODEL_CONFIG_INVALID", /num_key_value_heads 3/],
  ["a width that doesn't divide", { ...llama, hidden_size: 66 }, "PL_MODEL_CONFIG_INVALID", /hidden_size 66/],
  ["an odd head", { ...llama, head_dim: 15 }, "PL_MODEL_CONFIG_INVALID", /head_dim 15/],
  [
    "an end token outside the vocabulary",
    { ...llama, eos_token_id: 100 },
    "PL_MODEL_CONFIG_INVALID",
    /eos_token_id 100/,
  ],
  ["a key missing", { ...llama, hidden_size: undefined }, "PL_MODEL_CONFIG_INVALID", /hidden_size/],
  ["a count below one", { ...llama, num_hidden_layers: 0 }, "PL_MODEL_CONFIG_INVALID", /num_hidden_layers/],
  ["a count beyond sense", { ...llama, num_hidden_layers: 1e9 }, "PL_MODEL_CONFIG_INVALID", /num_hidden_layers/],
  ["a fraction", { ...llama, hidden_size: 64.5 }, "PL_MODEL_CONFIG_INVALID", /hidden_size/],
  [
    "Llama with windows",
    { ...llama, layer_types: ["full_attention", "sliding_attention"] },
    "PL_MODEL_UNSUPPORTED",
    /layer_types/,
  ],
  [
    "layer_types of another length",
    { ...llama, architectures: null, model_type: "qwen2", layer_types: ["full_attention"] },
    "PL_MODEL_CONFIG_INVALID",
    /layer_types has 1/,
  ],
  [
    "an unknown layer type",
    { ...llama, architectures: null, model_type: "qwen3", layer_types: ["full_attention", "linear_attention"] },
    "PL_MODEL_UNSUPPORTED",
    /linear_attention/,
  ],
  ["Qwen with half the rotary", { ...qwen, rotary_pct: 0.25 }, "PL_MODEL_UNSUPPORTED", /rotary_pct/],
  ["Qwen without score scaling", { ...qwen, scale_attn_weights: false }, "PL_MODEL_UNSUPPORTED", /scale_attn_weights/],
  ["Qwen with an odd MLP", { ...qwen, intermediate_size: 255 }, "PL_MODEL_CONFIG_INVALID", /intermediate_size 255/],
];

describe("configurations that are refused", () => {
  for (const [what, config, code, message] of rejected) {
    test(what, () => {
      assert.throws(
        () => modelSpecFromConfig(config),
        (error: unknown) => error instanceof PipeloraError && error.code === code && message.test(error.message),
      );
    });
  }

  test("the two they vary are accepted", () => {
    assert.equal(modelSpecFromConfig(llama).family, "llama");
    assert.equal(modelSpecFromConfig(qwen).family, "qwen");
  });

  test("whatever JSON comes, the answer is a spec or an error of the catalogue", () => {
    const value = fc.oneof(
      fc.jsonValue(),
      fc.integer({ min: -2, max: 300 }),
      fc.constantFrom(null, "silu", "yarn", true),
    );
    const config = fc.record(
      {
        ...Object.fromEntries(
          Object.keys(llama).map((key) => [key, fc.oneof(value, fc.constant(llama[key as keyof typeof llama]))]),
        ),
        rope_scaling: value,
        head_dim: value,
      },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(fc.oneof(config, fc.jsonValue()), (candidate) => {
        try {
          modelSpecFromConfig(candidate);
        } catch (error) {
          assert.ok(error instanceof PipeloraError, String(error));
          assert.notEqual(error.code, "PL_INTERNAL");
        }
      }),
      { numRuns: 300 },
    );
  });

  test("files: missing, not JSON, not UTF-8", async () => {
    const folder = await mkdtemp(join(tmpdir(), "pipelora-models-"));
    const code = async () =>
      readModelSpec(folder).then(
        () => "none",
        (error: PipeloraError) => error.code,
      );
    assert.equal(await code(), "PL_MODEL_NOT_FOUND");
    await writeFile(join(folder, "config.json"), "{ not json");
    assert.equal(await code(), "PL_MODEL_CONFIG_INVALID");
    await writeFile(join(folder, "config.json"), Buffer.from([0x7b, 0xff, 0x7d]));
    assert.equal(await code(), "PL_MODEL_CONFIG_INVALID");
    await writeFile(join(folder, "config.json"), JSON.stringify(llama));
    assert.equal(await code(), "none");
    await writeFile(join(folder, "generation_config.json"), JSON.stringify({ eos_token_id: [5, 7] }));
    assert.deepEqual((await readModelSpec(folder)).eosTokenIds, [5, 7]);
    await writeFile(join(folder, "generation_config.json"), JSON.stringify({ eos_token_id: "x" }));
    assert.equal(await code(), "PL_MODEL_CONFIG_INVALID");
  });
});
