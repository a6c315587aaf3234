import assert from "node:assert/strict";
import { test } from "node:test";
import { DEFAULT_LORA_SETTINGS, type LoraSettings } from "../../../src/common/lora-settings.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { loraRemarks } from "../../../src/models/lora-remarks.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";

const sizes = {
  ...{ hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4 },
  ...{ num_key_value_heads: 2, head_dim: 16, vocab_size: 100, num_experts: 4, num_experts_per_tok: 2 },
};
const dense = modelSpecFromConfig({ ...sizes, model_type: "qwen3", num_experts: null });
const mixture = modelSpecFromConfig({ ...sizes, model_type: "qwen3_moe" });

const said = (spec: typeof dense, settings: Partial<LoraSettings>) =>
  loraRemarks(
    spec,
    resolveLoraTargets(spec, { ...DEFAULT_LORA_SETTINGS, targetModules: ["q_proj", "v_proj"], ...settings }),
  );

test("names that match nothing are said, one sentence a setting", () => {
  assert.deepEqual(said(dense, {}), []);
  assert.deepEqual(said(dense, { targetModules: "all-linear", excludeModules: ".*nothing.*" }), []);
  assert.deepEqual(
    said(dense, { excludeModules: ["layers.1.self_attn.q_proj"], rankPattern: { "(q|k)_proj": 2 } }),
    [],
  );
  const settings = { targetModules: ["q_proj", "q_porj", "proj"], excludeModules: ["mpl"], layersToTransform: [0] };
  const [targets, excluded, rank, alpha, ...rest] = said(dense, {
    ...settings,
    ...{ rankPattern: { k_proj: 3, q_proj: 4 }, alphaPattern: { "layers\\.1\\..*": 2 } },
  });
  assert.match(targets!, /^target_modules q_porj, proj: no module/);
  assert.match(excluded!, /^exclude_modules mpl: /);
  assert.match(rank!, /^rank_pattern "k_proj" matches nothing/);
  assert.match(alpha!, /^alpha_pattern "layers\\\.1\\\.\.\*" matches nothing/);
  assert.deepEqual(rest, []);
});

test("experts' own names in target_modules get no LoRA, which is said", () => {
  const [remark, ...rest] = said(mixture, { targetModules: ["q_proj", "gate_proj", "mlp.down_proj"] });
  assert.match(remark!, /^target_modules gate_proj, mlp\.down_proj: experts get no LoRA.*target_parameters/);
  assert.deepEqual(rest, []);
  assert.deepEqual(said(mixture, { targetModules: ["q_proj"], targetParameters: ["mlp.experts.down_proj"] }), []);
});
