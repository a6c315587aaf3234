import assert from "node:assert/strict";
import { test } from "node:test";
import { defaultConfig } from "../../../src/config/load.ts";
import type { Config } from "../../../src/config/options.ts";
import { baseQuantization } from "../../../src/coordinator/planning/base-quantization.ts";
import { computeDtype } from "../../../src/coordinator/planning/compute-dtype.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";

const llama = {
  ...{ model_type: "llama", hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, vocab_size: 100 },
  ...{ num_attention_heads: 4, torch_dtype: "bfloat16" },
};
const nf4 = { load_in_4bit: true, bnb_4bit_quant_type: "nf4", bnb_4bit_use_double_quant: true };
const spec = modelSpecFromConfig(llama);
const stored = modelSpecFromConfig({ ...llama, quantization_config: { ...nf4, bnb_4bit_compute_dtype: "bfloat16" } });
const config = (change: Partial<Config> = {}): Config => ({ ...defaultConfig(), ...change });

test("flags quantise the linears of all blocks, and neither head nor embedding", () => {
  const { quantization, warnings } = baseQuantization(
    config({ load_in_8bit: true, llm_int8_threshold: 4, llm_int8_skip_modules: ["down_proj"] }),
    spec,
  );
  assert.deepEqual(quantization!.settings, { method: "8bit", threshold: 4 });
  assert.equal(quantization!.linears.length, 12);
  assert.deepEqual([...quantization!.skipped], ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]);
  assert.deepEqual(warnings, []);
  const typo = baseQuantization(config({ load_in_4bit: true, llm_int8_skip_modules: ["lm_head", "dwn_proj"] }), spec);
  assert.match(typo.warnings.join(), /^llm_int8_skip_modules: "dwn_proj" matches no module/);
  assert.equal(baseQuantization(config(), spec).quantization, null);
});

test("a quantised checkpoint's own settings hold", () => {
  const settings = { method: "4bit", quantType: "nf4", doubleQuant: true };
  assert.deepEqual(baseQuantization(config(), stored).quantization!.settings, settings);
  const asked = baseQuantization(config({ load_in_4bit: true, llm_int8_skip_modules: ["mlp"] }), stored);
  assert.deepEqual(asked.quantization!.settings, settings);
  assert.equal(asked.quantization!.skipped.size, 0);
  assert.match(asked.warnings.join(), /own settings hold, not --bnb-4bit-… and --llm-int8-skip-modules/);
  assert.throws(() => baseQuantization(config({ load_in_8bit: true }), stored), { code: "PL_CONFIG_INVALID" });
});

test("settings that would not act are refused", () => {
  for (const [change, says] of [
    [{ bnb_4bit_compute_dtype: "float16" }, /--bnb-4bit-compute-dtype acts only with a 4-bit base/],
    [{ llm_int8_threshold: 3 }, /--llm-int8-threshold acts only with an 8-bit base/],
    [{ llm_int8_skip_modules: ["mlp"] }, /--llm-int8-skip-modules acts only with a quantised base/],
  ] as const) {
    assert.throws(() => baseQuantization(config(change as Partial<Config>), spec), {
      code: "PL_CONFIG_INVALID",
      message: says,
    });
  }
});

const CPU = [{ kind: "cpu" }] as const;
const GPU = [{ kind: "cuda" }] as const;

test("the compute dtype: asked for, else a 4-bit base's, else by device", () => {
  const of = (change: Partial<Config>, model: typeof spec, devices: readonly { kind: "cpu" | "cuda" }[]) => {
    const { quantization } = baseQuantization(config(change), model);
    const { dtype, warning } = computeDtype(
      config(change),
      { quantization, spec: model, holdDtype: "bfloat16" },
      devices,
    );
    return [dtype, warning === null ? null : /float16|not followed/.test(warning)];
  };
  const four = { load_in_4bit: true } as const;
  assert.deepEqual(of({}, spec, CPU), ["float32", null]);
  assert.deepEqual(of({}, spec, GPU), ["bfloat16", null]);
  assert.deepEqual(of({ ...four, bnb_4bit_compute_dtype: "float16" }, spec, GPU), ["float16", null]);
  assert.deepEqual(of({ ...four, bnb_4bit_compute_dtype: "float16" }, spec, CPU), ["float32", true]);
  assert.deepEqual(of({ ...four, bnb_4bit_compute_dtype: "bfloat16" }, spec, CPU), ["bfloat16", null]);
  assert.deepEqual(of({}, stored, CPU), ["bfloat16", null]);
  assert.deepEqual(of({ bnb_4bit_compute_dtype: "float32" }, stored, GPU), ["float32", null]);
  const both = { ...four, bnb_4bit_compute_dtype: "float16", compute_dtype: "float32" } as const;
  assert.deepEqual(of(both, spec, CPU), ["float32", true]);
  assert.throws(() => of({ compute_dtype: "float16" }, spec, CPU), { code: "PL_DEVICE_UNAVAILABLE" });
  assert.deepEqual(of({ compute_dtype: "float16" }, spec, GPU), ["float16", null]);
});
