import assert from "node:assert/strict";
import { test } from "node:test";
import { defaultConfig } from "../../../../src/config/load.ts";
import { learningRate } from "../../../../src/coordinator/run/steps/learning-rate.ts";
import { groupRates, paramGroups } from "../../../../src/coordinator/run/steps/param-groups.ts";
import type { NamedMatrix } from "../../../../src/models/kinds/named-matrix.ts";

const matrix = (name: string, ...shape: number[]): NamedMatrix => ({ name, parameter: name, shape, layer: 0 });
const MATRICES = [
  matrix("model.layers.0.self_attn.q_proj.lora_A.weight", 4, 8),
  matrix("model.layers.0.self_attn.q_proj.lora_B.weight", 8, 4),
  matrix("model.layers.0.self_attn.q_proj.lora_magnitude_vector", 8),
  matrix("model.layers.0.self_attn.q_proj.base_layer.bias", 8),
  matrix("model.embed_tokens.lora_embedding_A", 4, 20),
  matrix("lm_head.weight", 20, 8),
];
const CONFIG = { ...defaultConfig(), learning_rate: 2e-3, weight_decay: 0.1 };
const ratesOf = (settings: Partial<typeof CONFIG>) => {
  const { groups, of } = paramGroups(MATRICES, { ...CONFIG, ...settings });
  return of.map((group) => [groups[group]!.peak, groups[group]!.weightDecay]);
};

test("without LoRA+ everything but biases decays, at one rate, as the Trainer's groups", () => {
  const plain = [2e-3, 0.1];
  assert.deepEqual(ratesOf({}), [plain, plain, plain, [2e-3, 0], plain, plain]);
  assert.equal(paramGroups(MATRICES.slice(0, 3), CONFIG).groups.length, 1);
});

test("LoRA+: B and vectors at the ratio, embeddings at their own rate, decay its own, as peft's optimizer", () => {
  const [a, b, m, bias, embedding, head] = ratesOf({ loraplus_lr_ratio: 16, loraplus_weight_decay: 0.2 });
  assert.deepEqual(
    [a, b, m],
    [
      [2e-3, 0.2],
      [32e-3, 0.2],
      [32e-3, 0.2],
    ],
  );
  assert.deepEqual(bias, [32e-3, 0]);
  assert.deepEqual(
    [embedding, head],
    [
      [1e-6, 0.2],
      [2e-3, 0.2],
    ],
  );
  assert.deepEqual(ratesOf({ loraplus_lr_ratio: 2, loraplus_lr_embedding: 3e-5 })[4], [3e-5, 0]);
});

test("lr_groups: the first that fits counts, LoRA+ on top of it; one that fits nothing is refused", () => {
  const lr_groups = [
    { name: "head", modules: ["lm_head"], lr: 1e-5 },
    { name: "q", modules: ["q_proj", "lm_head"], lr: 1e-4 },
  ];
  const rates = ratesOf({ lr_groups, loraplus_lr_ratio: 4 }).map(([peak]) => peak);
  assert.deepEqual(rates, [1e-4, 4e-4, 4e-4, 4e-4, 1e-6, 1e-5]);
  assert.throws(() => ratesOf({ lr_groups: [...lr_groups, { name: "v", modules: ["v_proj"], lr: 1 }] }), {
    code: "PL_CONFIG_INVALID",
    message: /lr_groups: v_proj \(v\)/,
  });
});

test("a group's rate is its share of every schedule, and of a run whose own rate is 0", () => {
  for (const type of ["linear", "cosine", "constant", "polynomial", "inverse_sqrt"] as const) {
    const rate = { type, peak: 1e-3, warmupSteps: type === "constant" ? 0 : 3, totalSteps: 20 };
    const groups = [1e-3, 5e-3].map((peak) => ({ peak, weightDecay: 0 }));
    for (const done of [0, 2, 3, 11, 19, 25]) {
      const [main, other] = groupRates(rate, groups, done).map((group) => Number(group.learningRate));
      assert.equal(main, learningRate(rate, done));
      assert.ok(Math.abs(other! - 5 * main!) <= 1e-12 * Math.abs(other!), `${type} ${done}`);
    }
  }
  const still = { type: "linear", peak: 0, warmupSteps: 0, totalSteps: 4 } as const;
  const [none, own] = groupRates(
    still,
    [
      { peak: 0, weightDecay: 0 },
      { peak: 1, weightDecay: 0 },
    ],
    1,
  );
  assert.deepEqual([none!.learningRate, own!.learningRate], [0, 0.75]);
});
