import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { DEFAULT_LORA_SETTINGS, type LoraSettings } from "../../../src/common/lora-settings.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { holdAs, listParameters } from "../../../src/models/parameters.ts";
import { fixture } from "../shared-data.ts";

const named = JSON.parse(readFileSync(fixture("models/named-models.json"), "utf8")) as Record<
  string,
  { config: object }
>;
const qwen7b = modelSpecFromConfig(named["qwen-7b"]!.config);
const llama = modelSpecFromConfig(named["tiny-llama-3-layer"]!.config);
const resolve = (spec: typeof llama, settings: Partial<LoraSettings> & Pick<LoraSettings, "targetModules">) =>
  resolveLoraTargets(spec, { ...DEFAULT_LORA_SETTINGS, ...settings });
const leaves = (spec: typeof llama, settings: Partial<LoraSettings> & Pick<LoraSettings, "targetModules">) =>
  resolve(spec, settings).targets.map(({ name }) => name.replace("model.layers.", "").replace(/(self_attn|mlp)\./, ""));

describe("LoRA targets", () => {
  test("the tutorial's settings on Qwen-7B: 17,891,328 trainable", () => {
    const lora = resolve(qwen7b, { targetModules: ["c_attn", "c_proj", "w1", "w2"], alpha: 32, dropout: 0.1 });
    assert.equal(lora.trainable, 17_891_328);
    assert.equal(lora.targets.length, 160);
    assert.deepEqual(
      lora.targets.slice(0, 6).map(({ name, moduleId, layer }) => [name, moduleId, layer]),
      [
        ["transformer.h.0.attn.c_attn", 0, 1],
        ["transformer.h.0.attn.c_proj", 1, 1],
        ["transformer.h.0.mlp.w1", 2, 1],
        ["transformer.h.0.mlp.w2", 3, 1],
        ["transformer.h.0.mlp.c_proj", 4, 1],
        ["transformer.h.1.attn.c_attn", 5, 2],
      ],
    );
    assert.deepEqual(lora.targets[0], {
      name: "transformer.h.0.attn.c_attn",
      role: "qkv",
      layer: 1,
      in: 4096,
      out: 12288,
      r: 8,
      alpha: 32,
      scale: 4,
      dropout: 0.1,
      moduleId: 0,
      dora: false,
    });
  });

  test("a list matches whole names and dotted suffixes only", () => {
    assert.equal(resolve(llama, { targetModules: ["q_proj"] }).targets.length, 3);
    assert.deepEqual(leaves(llama, { targetModules: ["model.layers.1.self_attn.q_proj"] }), ["1.q_proj"]);
    assert.deepEqual(leaves(llama, { targetModules: ["1.self_attn.q_proj", "mlp.up_proj"] }), [
      "0.up_proj",
      "1.q_proj",
      "1.up_proj",
      "2.up_proj",
    ]);
    assert.throws(() => resolve(llama, { targetModules: ["proj"] }), { code: "PL_TARGET_MODULES_UNMATCHED" });
  });

  test("a string is a pattern for the whole name, in Python's syntax", () => {
    assert.deepEqual(leaves(llama, { targetModules: String.raw`.*\.[02]\.self_attn\.(q|k)_proj` }), [
      "0.q_proj",
      "0.k_proj",
      "2.q_proj",
      "2.k_proj",
    ]);
    assert.throws(() => resolve(llama, { targetModules: "q_proj" }), { code: "PL_TARGET_MODULES_UNMATCHED" });
    assert.deepEqual(
      leaves(llama, {
        targetModules: String.raw`\A(?:model)\.layers\.(?P<n>1)\.self\_attn\.(?i:)?o\_proj\Z`.replace("(?i:)?", ""),
      }),
      ["1.o_proj"],
    );
    assert.deepEqual(leaves(llama, { targetModules: "(?i).*LAYERS.2.*DOWN_PROJ" }), ["2.down_proj"]);
    assert.deepEqual(leaves(llama, { targetModules: "lm_head|model.layers.0.mlp.gate_proj" }), [
      "0.gate_proj",
      "lm_head",
    ]);
  });

  test("patterns that can't run are refused by setting and reason", () => {
    assert.throws(
      () => resolve(llama, { targetModules: ".*(q_proj" }),
      /target_modules: "\.\*\(q_proj" is not a regular expression/,
    );
    assert.throws(() => resolve(llama, { targetModules: "q)|(k" }), { code: "PL_CONFIG_INVALID" });
    assert.throws(() => resolve(llama, { targetModules: ["q_proj"], rankPattern: { "(": 4 } }), /rank_pattern/);
    assert.throws(() => resolve(qwen7b, { targetModules: "(([a-z0-9._]+)+)+X" }), /took over/);
  });

  test("all-linear takes every linear layer but the head, and is stored as the fewest suffixes", () => {
    const lora = resolve(llama, { targetModules: "All-Linear" });
    assert.equal(lora.targets.length, 21);
    assert.deepEqual(lora.targetModules, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    assert.ok(!lora.targets.some(({ role }) => role === "head"));
    const some = resolve(llama, { targetModules: "all-linear", excludeModules: ["layers.1.mlp.up_proj"] });
    assert.equal(some.targets.length, 20);
    assert.deepEqual(
      resolve(llama, { targetModules: some.targetModules }).targets.map(({ name }) => name),
      some.targets.map(({ name }) => name),
    );
  });

  test("the output head, when named, comes last", () => {
    const lora = resolve(llama, { targetModules: ["lm_head", "q_proj"] });
    assert.deepEqual(
      [lora.targets.at(-1)?.name, lora.targets.at(-1)?.role, lora.targets.at(-1)?.out, lora.targets.at(-1)?.moduleId],
      ["lm_head", "head", 1000, 3],
    );
  });

  test("exclude_modules goes first: list, suffix or pattern", () => {
    assert.deepEqual(leaves(llama, { targetModules: ["q_proj"], excludeModules: ["0.self_attn.q_proj"] }), [
      "1.q_proj",
      "2.q_proj",
    ]);
    assert.deepEqual(leaves(llama, { targetModules: ["q_proj"], excludeModules: String.raw`.*\.[12]\..*` }), [
      "0.q_proj",
    ]);
    assert.throws(() => resolve(llama, { targetModules: ["q_proj"], excludeModules: ["q_proj"] }), /exclude_modules/);
  });

  test("layers_to_transform counts blocks; a full name is taken whatever its block", () => {
    assert.deepEqual(leaves(llama, { targetModules: ["q_proj"], layersToTransform: 1 }), ["1.q_proj"]);
    assert.deepEqual(leaves(llama, { targetModules: ["q_proj"], layersToTransform: [0, 2], layersPattern: "layers" }), [
      "0.q_proj",
      "2.q_proj",
    ]);
    assert.deepEqual(leaves(llama, { targetModules: ["q_proj"], layersToTransform: [] }).length, 3);
    assert.deepEqual(
      leaves(llama, { targetModules: ["k_proj", "model.layers.0.self_attn.q_proj"], layersToTransform: [2] }),
      ["0.q_proj", "2.k_proj"],
    );
    assert.throws(() => resolve(llama, { targetModules: ["q_proj"], layersToTransform: [0], layersPattern: ["h"] }), {
      code: "PL_TARGET_MODULES_UNMATCHED",
    });
    assert.throws(() => resolve(llama, { targetModules: ".*q_proj", layersToTransform: [0] }), /layers_to_transform/);
    assert.throws(() => resolve(llama, { targetModules: ["q_proj"], layersPattern: ["layers"] }), /layers_pattern/);
  });

  test("rank_pattern and alpha_pattern: the first key that matches a name's end", () => {
    const lora = resolve(llama, {
      targetModules: ["q_proj", "v_proj"],
      r: 8,
      alpha: 16,
      rankPattern: { "layers.0.self_attn.q_proj": 2, q_proj: 4 },
      alphaPattern: { "^model.layers.1.*": 32 },
      useRslora: true,
    });
    assert.deepEqual(
      lora.targets.map(({ r, alpha, scale }) => [r, alpha, scale]),
      [
        [2, 16, 16 / Math.sqrt(2)],
        [8, 16, 16 / Math.sqrt(8)],
        [4, 32, 16],
        [8, 32, 32 / Math.sqrt(8)],
        [4, 16, 8],
        [8, 16, 16 / Math.sqrt(8)],
      ],
    );
  });

  test("what is not offered is refused by name", () => {
    const refused: [Partial<LoraSettings>, RegExp][] = [
      [{ modulesToSave: ["norm"] }, /modules_to_save names .*norm of class/],
      [{ trainableTokenIndices: { lm_head: [3] } }, /names lm_head/],
      [{ initLoraWeights: "pissa", useDora: true }, /pissa is for pairs of linear layers, not for use_dora/],
      [{ r: 0 }, /lora_r/],
      [{ dropout: 1 }, /lora_dropout/],
    ];
    for (const [settings, message] of refused) {
      assert.throws(
        () => resolve(llama, { targetModules: ["q_proj"], ...settings }),
        (error: PipeloraError) => error.code === "PL_CONFIG_INVALID" && message.test(error.message),
      );
    }
    assert.throws(() => resolve(llama, { targetModules: ["mlp"] }), /LlamaMLP/);
  });

  test("a near miss lists near names", () => {
    assert.throws(
      () => resolve(qwen7b, { targetModules: ["c_atn", "w3"] }),
      (error: PipeloraError) =>
        error.code === "PL_TARGET_MODULES_UNMATCHED" &&
        /c_atn, w3/.test(error.message) &&
        /c_attn/.test(error.hint ?? ""),
    );
  });
});

describe("parameters", () => {
  test("plain model: its own names, nothing trainable", () => {
    const list = listParameters(llama, holdAs("bfloat16"), null);
    assert.equal(list.parameters.length, 29);
    assert.equal(list.trainable, 0);
    assert.equal(list.parameters[0]?.name, "model.embed_tokens.weight");
    assert.equal(list.bytes, list.total * 2);
  });

  test("with LoRA: peft's names, the frozen layer under base_layer", () => {
    const lora = resolve(qwen7b, { targetModules: ["c_attn", "c_proj", "w1", "w2"] });
    const list = listParameters(qwen7b, holdAs("float16"), lora);
    assert.equal(list.trainable, 17_891_328);
    assert.equal(list.total, 7_721_324_544 + 17_891_328);
    assert.deepEqual(
      list.parameters.slice(2, 6).map(({ name, shape, dtype, trainable }) => [name, [...shape], dtype, trainable]),
      [
        ["base_model.model.transformer.h.0.attn.c_attn.base_layer.weight", [12288, 4096], "float16", false],
        ["base_model.model.transformer.h.0.attn.c_attn.base_layer.bias", [12288], "float16", false],
        ["base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight", [8, 4096], "float32", true],
        ["base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight", [12288, 8], "float32", true],
      ],
    );
  });

  test("a tied head's pair is listed although its weight is the embedding's", () => {
    const lora = resolve(llama, { targetModules: ["lm_head"] });
    const names = listParameters(llama, holdAs("float32"), lora).parameters.map(({ name }) => name);
    assert.deepEqual(names.slice(-2), [
      "base_model.model.lm_head.lora_A.default.weight",
      "base_model.model.lm_head.lora_B.default.weight",
    ]);
  });
});
