import assert from "node:assert/strict";
import { test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { DEFAULT_LORA_SETTINGS, type LoraSettings } from "../../../src/common/lora-settings.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { holdAs, listParameters } from "../../../src/models/parameters.ts";
import type { ModelSpec } from "../../../src/models/spec.ts";

const config = (more: object = {}) => ({
  ...{ model_type: "qwen2", hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 2 },
  ...{
    num_key_value_heads: 1,
    vocab_size: 30,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: false,
    pad_token_id: 3,
    ...more,
  },
});
const model = modelSpecFromConfig(config());
const tied = modelSpecFromConfig(config({ tie_word_embeddings: true }));
const resolve = (settings: Partial<LoraSettings>, spec: ModelSpec = model) =>
  resolveLoraTargets(spec, { ...DEFAULT_LORA_SETTINGS, targetModules: ["q_proj"], r: 2, alpha: 4, ...settings });
const shapes = (settings: Partial<LoraSettings>, spec?: ModelSpec) =>
  Object.fromEntries(
    resolve(settings, spec)
      .matrices.filter(({ name }) => !name.includes("layers.1."))
      .map(({ name, shape, layer }) => [name, [...shape, layer]]),
  );
const Q = "model.layers.0.self_attn.q_proj";
const PAIR = { [`${Q}.lora_A.weight`]: [2, 16, 1], [`${Q}.lora_B.weight`]: [16, 2, 1] };

test("every kind's matrices have peft's names, shapes and layers", () => {
  assert.deepEqual(shapes({}), PAIR);
  assert.deepEqual(shapes({ useDora: true }), { ...PAIR, [`${Q}.lora_magnitude_vector`]: [16, 1] });
  assert.deepEqual(shapes({ modulesToSave: ["lm_head", "embed_tokens"] }), {
    ...PAIR,
    "model.embed_tokens.weight": [30, 16, 0],
    "lm_head.weight": [30, 16, 4],
  });
  assert.deepEqual(shapes({ targetModules: ["embed_tokens", "lm_head"] }), {
    "model.embed_tokens.lora_embedding_A": [2, 30, 0],
    "model.embed_tokens.lora_embedding_B": [16, 2, 0],
    "lm_head.lora_A.weight": [2, 16, 4],
    "lm_head.lora_B.weight": [30, 2, 4],
  });
  assert.deepEqual(shapes({ bias: "lora_only" }), { ...PAIR, [`${Q}.base_layer.bias`]: [16, 1] });
  const all = shapes({ bias: "all" });
  assert.deepEqual(all["model.layers.0.self_attn.k_proj.bias"], [8, 1]);
  assert.equal(Object.keys(all).length, 5);
  assert.deepEqual(shapes({ trainableTokenIndices: [7, 3, 29] }), {
    ...PAIR,
    "model.embed_tokens.token_adapter.trainable_tokens_delta": [3, 16, 0],
  });
  assert.deepEqual(shapes({ trainableTokenIndices: { embed_tokens: [1] } }), shapes({ trainableTokenIndices: [5] }));
  assert.deepEqual(shapes({ useDora: true, targetModules: ["embed_tokens"] }), {
    "model.embed_tokens.lora_embedding_A": [2, 30, 0],
    "model.embed_tokens.lora_embedding_B": [16, 2, 0],
    "model.embed_tokens.lora_magnitude_vector": [16, 0],
  });
});

test("rows of tokens of a tied model are one matrix, whose values its head has too", () => {
  const settings = { trainableTokenIndices: [7, 3, 29] };
  assert.deepEqual(shapes(settings, tied), shapes(settings));
  const twins = (spec: ModelSpec) => resolve(settings, spec).matrices.flatMap(({ twin }) => twin ?? []);
  assert.deepEqual(twins(model), []);
  assert.deepEqual(twins(tied), [{ name: "lm_head.token_adapter.trainable_tokens_delta", layer: 4 }]);
  assert.equal(resolve(settings, tied).trainable, resolve(settings).trainable);
});

test("what is trained whole gets no pair, of a tied model each end its own copy", () => {
  const { targets, saved } = resolve({ targetModules: ["q_proj", "lm_head"], modulesToSave: ["lm_head"] });
  assert.deepEqual([targets.some(({ name }) => name === "lm_head"), saved.length], [false, 1]);
  assert.equal(resolve({ modulesToSave: ["embed_tokens", "lm_head"] }, tied).saved.length, 2);
  assert.equal(resolve({ targetModules: "all-linear" }).targets.length, 14);
});

test("an embedding's padding row, which is never trained, is pad_token_id, from the end where it is negative", () => {
  const padding = (more: object) => {
    const [first] = modelSpecFromConfig(config(more)).layers;
    return first?.kind === "embedding" ? first.padding : null;
  };
  assert.deepEqual([padding({}), padding({ pad_token_id: null }), padding({ pad_token_id: -1 })], [3, undefined, 29]);
  assert.equal(padding({ pad_token_id: 400 }), undefined);
});

test("peft's file has the bases of embeddings and heads that target_modules names", () => {
  const bases = (targetModules: string | string[], more: Partial<LoraSettings> = {}) =>
    resolve({ targetModules, ...more }).bases.map(({ name, tensor }) => [name, tensor]);
  assert.deepEqual(bases(["q_proj"]), []);
  assert.deepEqual(bases(["q_proj", "lm_head"]), [["lm_head.base_layer.weight", "lm_head.weight"]]);
  assert.deepEqual(bases(["embed_tokens"]), [["model.embed_tokens.base_layer.weight", "model.embed_tokens.weight"]]);
  assert.deepEqual(bases(["model.embed_tokens"]), []);
  assert.equal(bases(".*(embed_tokens|lm_head)").length, 2);
});

test("the list of parameters: originals, copies, magnitudes, biases in their own place, counted once", () => {
  const list = (settings: Partial<LoraSettings>) => listParameters(model, holdAs("bfloat16"), resolve(settings));
  const plain = list({});
  const all = list({ useDora: true, bias: "all", modulesToSave: ["embed_tokens"] });
  const names = all.parameters.map(({ name, dtype, trainable }) => `${name} ${dtype} ${trainable}`);
  assert.equal(new Set(names).size, names.length);
  for (const line of [
    "model.embed_tokens.original_module.weight bfloat16 false",
    "model.embed_tokens.modules_to_save.default.weight float32 true",
    `${Q}.lora_magnitude_vector.default.weight float32 true`,
    `${Q}.base_layer.bias float32 true`,
    "model.layers.1.self_attn.v_proj.bias float32 true",
  ]) {
    assert.ok(names.includes(`base_model.model.${line}`), line);
  }
  const listed = all.parameters.filter(({ trainable }) => trainable);
  assert.equal(
    all.trainable,
    listed.reduce((sum, { shape }) => sum + shape.reduce((n, extent) => n * extent, 1), 0),
  );
  assert.equal(all.trainable - plain.trainable, 2 * 16 + 2 * 32 + 30 * 16);
  assert.equal(all.total - plain.total, 2 * 16 + 30 * 16);
});

test("what does not go together is refused by name", () => {
  const refused: [Partial<LoraSettings>, RegExp, ModelSpec?][] = [
    [{ trainableTokenIndices: [3, 5, 3] }, /token 3 twice/],
    [{ trainableTokenIndices: [30] }, /token 30: ids are 0 to 29/],
    [{ trainableTokenIndices: [1], modulesToSave: ["embed_tokens"] }, /modules_to_save both train/],
    [{ trainableTokenIndices: [1], targetModules: ["embed_tokens"] }, /target_modules both train/],
    [{ trainableTokenIndices: [1], targetModules: ["q_proj", "lm_head"] }, /lm_head too.*target_modules can't/, tied],
    [{ trainableTokenIndices: [1], modulesToSave: ["lm_head"] }, /lm_head too.*modules_to_save can't/, tied],
    [{ modulesToSave: ["up_proj"] }, /up_proj of class Linear/],
    [{ initLoraWeights: "orthogonal", r: 3 }, /needs an even rank, .*q_proj has 3/],
    [{ initLoraWeights: "olora", targetModules: ["k_proj"], r: 9 }, /k_proj \[8, 16\] has no rank of 9/],
    [
      { initLoraWeights: "loftq", rankPattern: { "1.*q_proj": 20 } },
      /layers\.1\..*q_proj \[16, 16\] has no rank of 20/,
    ],
  ];
  for (const [settings, message, spec] of refused) {
    assert.throws(
      () => resolve(settings, spec),
      (error: PipeloraError) => error.code === "PL_CONFIG_INVALID" && message.test(error.message),
    );
  }
  assert.throws(() => resolve({ modulesToSave: ["embed_in"] }), { code: "PL_TARGET_MODULES_UNMATCHED" });
});
