import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { ropeFromConfig, ropeRemarks } from "../../../src/models/rope.ts";

const close = (found: number | undefined, expected: number) =>
  assert.ok(Math.abs(found! - expected) <= 2e-7 * Math.abs(expected), `${found} vs ${expected}`);

/** Expected values: the same rules evaluated in float32 with numpy. */
describe("rotary frequencies", () => {
  test("default", () => {
    const rope = ropeFromConfig({}, { headDim: 128, base: 10000, maxPositions: 2048 });
    assert.equal(rope.invFreq.length, 64);
    for (const [i, value] of [
      [0, 1],
      [1, 0.8659643530845642],
      [31, 0.011547819711267948],
      [63, 0.00011547820759005845],
    ] as const) {
      close(rope.invFreq[i], value);
    }
  });

  test("transformers 4 and 5 spellings agree", () => {
    const four = ropeFromConfig(
      { rope_theta: 500000, rope_scaling: { type: "linear", factor: 4 } },
      { headDim: 64, base: 10000, maxPositions: 2048 },
    );
    const five = ropeFromConfig(
      { rope_parameters: { rope_theta: 500000, rope_type: "linear", factor: 4 } },
      { headDim: 64, base: 10000, maxPositions: 2048 },
    );
    assert.deepEqual(four, five);
    const plain = ropeFromConfig({ rope_theta: 500000 }, { headDim: 64, base: 10000, maxPositions: 2048 });
    four.invFreq.forEach((value, i) => {
      close(value, plain.invFreq[i]! / 4);
    });
  });

  test("rope_scaling beside rope_parameters: the first counts, with its own base or the default, and it is said", () => {
    const family = { headDim: 64, base: 10000, maxPositions: 2048 };
    const given = { rope_theta: 1000000, rope_type: "default" };
    const scaling = { type: "linear", factor: 4 };
    const alone = ropeFromConfig({ rope_scaling: scaling }, family);
    assert.deepEqual(ropeFromConfig({ rope_parameters: given, rope_scaling: scaling }, family), alone);
    const based = ropeFromConfig({ rope_scaling: scaling, rope_theta: 5000 }, family);
    assert.deepEqual(
      ropeFromConfig({ rope_parameters: given, rope_scaling: scaling, rope_theta: 5000 }, family),
      based,
    );
    const own = { ...scaling, rope_theta: 1000000 };
    assert.equal(ropeFromConfig({ rope_parameters: given, rope_scaling: own }, family).base, 1000000);
    for (const nothing of [null, {}, undefined]) {
      assert.equal(ropeFromConfig({ rope_parameters: given, rope_scaling: nothing }, family).base, 1000000);
      assert.deepEqual(ropeRemarks({ rope_parameters: given, rope_scaling: nothing }), []);
      assert.deepEqual(ropeRemarks({ rope_parameters: nothing, rope_scaling: scaling }), []);
    }
    const [said] = ropeRemarks({ rope_parameters: given, rope_scaling: scaling });
    assert.match(said!, /lost rope_theta 1000000, rope_type "default"/);
    assert.deepEqual(ropeRemarks({ rope_parameters: given, rope_scaling: { ...given } }), []);
  });

  test("Gemma 3: rope_scaling goes over rope_parameters of full attention alone", () => {
    const types = { full_attention: { rope_theta: 7, rope_type: "default" }, sliding_attention: { rope_theta: 9 } };
    const config = { rope_parameters: types, rope_scaling: { rope_type: "linear", factor: 2 } };
    const family = { headDim: 64, base: 1000000, maxPositions: 2048 };
    const full = ropeFromConfig(config, { ...family, layerType: "full_attention" });
    assert.deepEqual(full, ropeFromConfig({ rope_scaling: { rope_type: "linear", factor: 2, rope_theta: 7 } }, family));
    const sliding = ropeFromConfig(config, { ...family, layerType: "sliding_attention", unscaled: true });
    assert.deepEqual(sliding, ropeFromConfig({ rope_theta: 9 }, family));
    assert.match(ropeRemarks(config)[0]!, /lost rope_type "default"/);
  });

  test("llama3 (Llama 3.1)", () => {
    const scaling = {
      rope_type: "llama3",
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    };
    const rope = ropeFromConfig(
      { rope_theta: 500000, rope_scaling: scaling },
      { headDim: 128, base: 10000, maxPositions: 131072 },
    );
    const expected = [
      [0, 1],
      [1, 0.8146172165870667],
      [20, 0.016560440883040428],
      [28, 0.0032114461064338684],
      [29, 0.0021665706299245358],
      [30, 0.0013718936825171113],
      [35, 9.556212899042293e-5],
      [36, 7.784655463183299e-5],
      [50, 4.411534519022098e-6],
      [63, 3.068925877869333e-7],
    ] as const;
    for (const [i, value] of expected) close(rope.invFreq[i], value);
    assert.equal(rope.attentionScaling, 1);
  });

  test("yarn (Qwen2.5 at 128k)", () => {
    const scaling = { type: "yarn", factor: 4, original_max_position_embeddings: 32768 };
    const rope = ropeFromConfig(
      { rope_theta: 1000000, rope_scaling: scaling },
      { headDim: 128, base: 10000, maxPositions: 32768 },
    );
    const expected = [
      [0, 1],
      [10, 0.11547820270061493],
      [23, 0.006978305988013744],
      [24, 0.005375321488827467],
      [30, 0.001064361073076725],
      [38, 9.262301318813115e-5],
      [39, 6.490394298452884e-5],
      [40, 4.4456985051510856e-5],
      [63, 3.102344408034696e-7],
    ] as const;
    for (const [i, value] of expected) close(rope.invFreq[i], value);
    close(rope.attentionScaling, 1.138629436111989);
    const given = ropeFromConfig(
      { rope_scaling: { ...scaling, attention_factor: 1.5 } },
      { headDim: 128, base: 10000, maxPositions: 32768 },
    );
    assert.equal(given.attentionScaling, 1.5);
  });
});
