import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { pairMatrices } from "../../../src/models/kinds/lora.ts";
import { type DeviceMapInput, expandDeviceMap, hfDeviceMap, makePlan, segmentsOf } from "../../../src/plan/index.ts";
import { cpus, everyLinear, gpus, model, request } from "./models.ts";

const qwen = model("qwen-7b", { num_hidden_layers: 4 });
const tied = model("tiny-llama-3-layer");
const devices = gpus(3);
/** One device a layer. */
const each = (...ids: readonly number[]) => ids.map((id) => [id]);
const invalid = { code: "PL_DEVICE_MAP_INVALID" };

test('the root key "" is the whole model', () => {
  assert.deepEqual(expandDeviceMap(tied, { "": 1 }, devices).layerDevices, each(1, 1, 1, 1, 1, 1));
});

test("the longest prefix holds", () => {
  const map = { "": 0, model: 1, "model.layers.2": "2", "model.norm": "cuda:0" };
  assert.deepEqual(expandDeviceMap(tied, map, devices).layerDevices, each(1, 1, 1, 2, 0, 0));
});

test("a map as accelerate writes it, with modules that have no weights", () => {
  const map = {
    ...{ "transformer.wte": 0, "transformer.drop": 0, "transformer.rotary_emb": 0, "transformer.h.0": 0 },
    ...{ "transformer.h.1": 1, "transformer.h.2": 1, "transformer.h.3": 2, "transformer.ln_f": 2, lm_head: 2 },
  };
  const { layerDevices, warnings } = expandDeviceMap(qwen, map, devices);
  assert.deepEqual(layerDevices, each(0, 0, 1, 1, 2, 2, 2));
  assert.deepEqual(warnings, []);
});

test("a prefix ends at a dot: h.1 does not cover h.10", () => {
  const spec = model("qwen-7b", { num_hidden_layers: 11 });
  const map: Record<string, number> = { "": 0, "transformer.h.1": 1 };
  assert.deepEqual(expandDeviceMap(spec, map, devices).layerDevices, each(0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
});

test("parts of one block on one device are no split", () => {
  const map = { "": 0, "model.layers.1.self_attn": 1, "model.layers.1": 1 };
  assert.deepEqual(expandDeviceMap(tied, map, devices).layerDevices, each(0, 0, 1, 0, 0, 0));
});

test("the head and the final norm may have several devices, each once", () => {
  const map = { "": 0, "model.layers.2": 1, "model.norm": ["1", 0], lm_head: ["1", 0] };
  assert.deepEqual(expandDeviceMap(tied, map, devices).layerDevices, [[0], [0], [0], [1], [1, 0], [1, 0]]);
  const plan = makePlan(request(tied, gpus(2), { strategy: map }));
  assert.deepEqual(plan.segments.at(-1)!.ranks, [1, 0]);
  assert.deepEqual(
    plan.devices.map(({ segments }) => segments),
    [
      [0, 2],
      [1, 2],
    ],
  );
  // transformers' form has one device a module: of those that have the head, the one before it.
  assert.equal(plan.hfDeviceMap.get("lm_head"), 1);
});

test("a head that is trained stays on one device, and is refused where a map puts it on several", () => {
  const head = tied.layers.findIndex(({ kind }) => kind === "head");
  const trained = [
    ...everyLinear(tied).flatMap(pairMatrices),
    { name: "lm_head.weight", parameter: "lm_head.weight", layer: head, shape: [1000, 128] },
  ];
  const asked = request(tied, gpus(2), { matrices: trained, strategy: { "": 0, lm_head: [0, 1] } });
  assert.throws(() => makePlan(asked), { ...invalid, message: /lm_head on devices 0, 1, and the head is trained/ });
  for (const strategy of ["auto", "fastest"] as const) {
    const plan = makePlan({ ...asked, strategy });
    for (const { ranks } of plan.segments) assert.equal(ranks.length, 1);
    assert.equal(/the head is trained/.test(plan.warnings.join()), plan.segments.length > 1);
  }
});

test("what a map may not do is named", () => {
  const refuse = (map: DeviceMapInput, message: RegExp) =>
    assert.throws(() => expandDeviceMap(tied, map, devices), { ...invalid, message });
  refuse({}, /empty/);
  refuse({ "": 0, lm_head: [0, 0] }, /gives "lm_head" the devices \[0,0\]: expected one or more, each once/);
  refuse({ "": 0, lm_head: [] }, /expected one or more/);
  refuse({ "": [0, 1] }, /puts model\.embed_tokens on devices 0, 1: only the final norm and the head/);
  refuse({ "": 0, "model.layers.1": [0, 1] }, /puts block model\.layers\.1 on devices 0, 1/);
  refuse({ "": 0, lm_head: [0, 9] }, /"lm_head" on 9; the devices are 0, 1, 2/);
  refuse({ "model.embed_tokens": 0, "model.layers": 0, lm_head: 0 }, /leaves out model\.norm\./);
  refuse({ model: 0 }, /leaves out lm_head\./);
  refuse({ "": 0, "model.layers.1.mlp": 1 }, /splits block model\.layers\.1: .* on 0.* on 1/);
  refuse({ "": 0, "model.layers.1": 7 }, /"model\.layers\.1" on 7; the devices are 0, 1, 2/);
  refuse({ "": "cpu" }, /the whole model \(""\) on "cpu"/);
  refuse({ "": "disk" }, /on "disk"/);
  refuse({ "": "cuda:x" }, /on "cuda:x"/);
});

test('"cpu" is a device where there is exactly one', () => {
  assert.deepEqual(new Set(expandDeviceMap(tied, { "": "cpu" }, cpus(1)).layerDevices.flat()), new Set([0]));
  assert.throws(() => expandDeviceMap(tied, { "": "cpu" }, cpus(2)), invalid);
});

test("keys that name no module warn, with what was near", () => {
  const { warnings } = expandDeviceMap(tied, { "": 0, "model.layer.1": 1, "lm_head.weight": 0 }, devices);
  assert.equal(warnings.length, 1);
  assert.match(warnings[0]!, /"model\.layer\.1" names no module \(near: model\.layers\.1/);
});

test("a tied head back on device 0 is a second segment there, and holds its copy", () => {
  const map = { "model.embed_tokens": 0, "model.layers": 1, "model.norm": 1, lm_head: 0 };
  const plan = makePlan(request(tied, gpus(2), { strategy: map, lora: everyLinear(tied) }));
  const runs = plan.segments.map(({ ranks, firstLayer, lastLayer }) => [ranks[0], firstLayer, lastLayer]);
  assert.deepEqual(runs, [
    [0, 0, 0],
    [1, 1, 4],
    [0, 5, 5],
  ]);
  assert.deepEqual(plan.devices[0]!.segments, [0, 2]);
  const table = 1000 * 128 * 2;
  assert.deepEqual([plan.devices[0]!.memory.weights, plan.devices[0]!.memory.hostWeights], [table, table]);
  assert.deepEqual(Object.fromEntries(plan.hfDeviceMap), {
    "model.embed_tokens": 0,
    "model.layers": 1,
    "model.norm": 1,
    "model.rotary_emb": 1,
    lm_head: 0,
  });
  assert.deepEqual(
    plan.segments.map(({ needsBackward }) => needsBackward),
    [false, true, true],
  );
  assert.deepEqual(
    plan.segments.map(({ needsInputGrad }) => needsInputGrad),
    [false, false, true],
  );
});

test("segments are runs of layers on the same devices, ranks count devices by id", () => {
  assert.deepEqual(segmentsOf([[5], [5], [2], [5], [5, 2], [5, 2]], [2, 5, 9]), [
    { index: 0, devices: [5], ranks: [1], firstLayer: 0, lastLayer: 1 },
    { index: 1, devices: [2], ranks: [0], firstLayer: 2, lastLayer: 2 },
    { index: 2, devices: [5], ranks: [1], firstLayer: 3, lastLayer: 3 },
    { index: 3, devices: [5, 2], ranks: [1, 0], firstLayer: 4, lastLayer: 5 },
  ]);
});

test("hf_device_map covers every tensor and expands to the placement it came from", () => {
  for (const spec of [qwen, tied]) {
    fc.assert(
      fc.property(fc.array(fc.nat(2), { minLength: spec.layers.length, maxLength: spec.layers.length }), (ids) => {
        const placed = ids.map((id) => [id]);
        const map = Object.fromEntries(hfDeviceMap(spec, placed)) as Record<string, number>;
        const { layerDevices, warnings } = expandDeviceMap(spec, map, devices);
        assert.deepEqual(layerDevices, placed);
        assert.deepEqual(warnings, []);
        for (const { name } of spec.tensors) {
          assert.ok(
            Object.keys(map).some((key) => key === "" || name === key || name.startsWith(`${key}.`)),
            name,
          );
        }
      }),
      { numRuns: 300 },
    );
  }
});

test("a whole model on one device collapses to the root", () => {
  assert.deepEqual(Object.fromEntries(hfDeviceMap(qwen, new Array(7).fill([0]))), { "": 0 });
});

test("segments below the lowest LoRA pair need no backward", () => {
  const plan = makePlan(request(qwen, gpus(3), { lora: everyLinear(qwen, 8, 2), strategy: "balanced" }));
  for (const { firstLayer, lastLayer, needsBackward, needsInputGrad } of plan.segments) {
    assert.equal(needsBackward, lastLayer >= 3);
    assert.equal(needsInputGrad, firstLayer > 3);
  }
});
