import assert from "node:assert/strict";
import { test } from "node:test";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { skippedLinears } from "../../../src/models/quantization.ts";

const llama = {
  ...{ model_type: "llama", hidden_size: 64, intermediate_size: 128, num_hidden_layers: 12, vocab_size: 100 },
  num_attention_heads: 4,
};
const withSection = (section: object) => modelSpecFromConfig({ ...llama, quantization_config: section });

test("quantization_config as transformers writes it", () => {
  assert.equal(modelSpecFromConfig(llama).quantization, null);
  const { quantization } = withSection({
    ...{ _load_in_4bit: true, _load_in_8bit: false, load_in_4bit: true, load_in_8bit: false },
    ...{ bnb_4bit_compute_dtype: "float16", bnb_4bit_quant_storage: "uint8", bnb_4bit_quant_type: "nf4" },
    ...{ bnb_4bit_use_double_quant: true, llm_int8_skip_modules: null, llm_int8_threshold: 6.0 },
    quant_method: "bitsandbytes",
  });
  assert.deepEqual(quantization, {
    settings: { method: "4bit", quantType: "nf4", doubleQuant: true },
    skipModules: [],
    computeDtype: "float16",
  });
  // Before quant_method was written.
  const old = withSection({ load_in_8bit: true, llm_int8_threshold: 5, llm_int8_skip_modules: ["lm_head"] });
  assert.deepEqual(old.quantization, {
    settings: { method: "8bit", threshold: 5 },
    skipModules: ["lm_head"],
    computeDtype: null,
  });
});

for (const [section, code, says] of [
  [{ quant_method: "gptq" }, "PL_MODEL_UNSUPPORTED", /quant_method.*gptq.*bitsandbytes/],
  [{ load_in_4bit: true, load_in_8bit: true }, "PL_MODEL_CONFIG_INVALID", /both of load_in_4bit and load_in_8bit/],
  [{ quant_method: "bitsandbytes" }, "PL_MODEL_CONFIG_INVALID", /neither of/],
  [{ load_in_4bit: true, bnb_4bit_quant_type: "int4" }, "PL_MODEL_UNSUPPORTED", /bnb_4bit_quant_type.*nf4/],
  [{ load_in_4bit: true, bnb_4bit_quant_storage: "bfloat16" }, "PL_MODEL_UNSUPPORTED", /bnb_4bit_quant_storage/],
  [{ load_in_4bit: "yes" }, "PL_MODEL_CONFIG_INVALID", /load_in_4bit/],
  [[1], "PL_MODEL_CONFIG_INVALID", /quantization_config/],
] as const) {
  test(`refused: ${JSON.stringify(section)}`, () => {
    assert.throws(() => withSection(section), { code, message: says });
  });
}

test("llm_int8_skip_modules: a beginning of the name as a regular expression, its end, or whole parts", () => {
  const spec = modelSpecFromConfig(llama);
  const skipped = (...patterns: string[]) => [...skippedLinears(spec, patterns)];
  assert.deepEqual(skipped(), []);
  assert.deepEqual(skipped("lm_head", "q_norm"), []);
  assert.equal(skipped("down_proj").length, 12);
  assert.equal(skipped("model.layers.3.").length, 7);
  // Blocks 1, 10 and 11: a beginning need not end at a dot.
  assert.equal(skipped("model.layers.1").length, 21);
  assert.equal(skipped("model\\.layers\\.[0-4]\\.mlp").length, 15);
  assert.equal(skipped("mlp").length, 36);
  assert.equal(skipped("layers.0.mlp").length, 3);
  assert.equal(skipped("ml").length, 0);
  assert.throws(() => skipped("q_proj"), {
    code: "PL_CONFIG_INVALID",
    message: /q_proj but not .*k_proj.*one product/,
  });
  assert.equal(skipped("q_proj", "k_proj", "v_proj").length, 36);
  assert.throws(() => skipped("("), { code: "PL_CONFIG_INVALID" });
});
