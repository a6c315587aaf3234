import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import type { ModelSpec } from "../../../src/models/spec.ts";
import { type AccelerateStrategy, accelerateDeviceMap } from "../../../src/plan/accelerate/index.ts";
import { type DeviceKey, type Holding, makePlan, parseMaxMemory } from "../../../src/plan/index.ts";
import { fixture, shared } from "../shared-data.ts";
import { gpus, model, NF4, PLAIN, request } from "./models.ts";

interface Case {
  readonly model: string;
  readonly quantization: "none" | "int8" | "int4";
  readonly strategy: AccelerateStrategy;
  readonly max_memory: Record<string, number>;
  readonly module_total: number;
  readonly balanced_memory?: Record<string, number>;
  readonly device_map?: Record<string, DeviceKey>;
  readonly error?: string;
}

const HOLDINGS: Readonly<Record<Case["quantization"], Holding>> = {
  none: PLAIN,
  int8: { ...PLAIN, quantization: { method: "8bit" } },
  int4: NF4,
};

const specs = new Map<string, ModelSpec>();

function specOf(name: string): ModelSpec {
  const spec = specs.get(name) ?? model(name);
  specs.set(name, spec);
  return spec;
}

function cases(path: string): Case[] {
  return (JSON.parse(readFileSync(path, "utf8")) as { cases: Case[] }).cases;
}

/** Keys of a JSON object as numbers where they are. */
function entries(map: Readonly<Record<string, number>>): Map<DeviceKey, number> {
  return parseMaxMemory(map) as Map<DeviceKey, number>;
}

function check(vector: Case): void {
  const where = JSON.stringify({ ...vector, device_map: undefined, balanced_memory: undefined });
  if (vector.error !== undefined) {
    const plan = planOf(vector);
    assert.equal(plan.problem, null, where);
    assert.ok(
      plan.warnings.some((warning) => warning.includes("KeyError")),
      where,
    );
    const used = plan.devices.filter(({ segments }) => segments.length > 0).map(({ device }) => device);
    assert.deepEqual(used, Object.keys(vector.max_memory).map(Number), where);
    return;
  }
  const result = accelerateDeviceMap(specOf(vector.model), {
    strategy: vector.strategy,
    maxMemory: entries(vector.max_memory),
    userGiven: true,
    quantization: vector.quantization,
    loadDtype: "bfloat16",
  });
  assert.equal(result.moduleTotal, vector.module_total, where);
  assert.deepEqual(result.balancedMemory, entries(vector.balanced_memory!), where);
  assert.deepEqual(Object.fromEntries(result.deviceMap), vector.device_map, where);
  assert.deepEqual(Object.fromEntries(planOf(vector).hfDeviceMap), vector.device_map, where);
}

function planOf(vector: Case) {
  const maxMemory = entries(vector.max_memory);
  const last = Math.max(...[...maxMemory.keys()].filter((key) => typeof key === "number"));
  return makePlan(
    request(specOf(vector.model), gpus(last + 1, null), {
      strategy: vector.strategy,
      planner: "accelerate",
      holding: HOLDINGS[vector.quantization],
      maxMemory,
    }),
  );
}

test("--planner accelerate makes accelerate's maps, budgets and sizes", () => {
  const vectors = cases(fixture("placements/cases.json"));
  assert.ok(vectors.length >= 40);
  for (const vector of vectors) check(vector);
});

const all = shared("goldens/placements/cases.json");
test("every shared placement vector", { skip: all === null && "no shared vectors here" }, () => {
  const vectors = cases(all!);
  assert.ok(vectors.length >= 800);
  for (const vector of vectors) check(vector);
});

test("a map that spills is shown as it is, and refused to run with the layers named", () => {
  const plan = makePlan(
    request(specOf("qwen-7b"), gpus(1, null), { planner: "accelerate", maxMemory: new Map([[0, 6e9]]) }),
  );
  assert.ok([...plan.hfDeviceMap.values()].includes("disk"));
  assert.match(plan.problem!, /on disk/);
  assert.equal(plan.predicted, null);
  assert.deepEqual(plan.segments, []);
});

test("with one GPU and no max_memory accelerate keeps a tenth free, whatever the strategy", () => {
  const spec = specOf("tiny-llama-3-layer");
  const sizes = { quantization: "none", loadDtype: "bfloat16", userGiven: false } as const;
  for (const strategy of ["auto", "balanced", "balanced_low_0"] as const) {
    const { balancedMemory } = accelerateDeviceMap(spec, { ...sizes, strategy, maxMemory: new Map([[0, 1000]]) });
    assert.deepEqual(balancedMemory, new Map([[0, 900]]));
  }
  const { balancedMemory } = accelerateDeviceMap(spec, {
    ...sizes,
    strategy: "sequential",
    maxMemory: new Map([[0, 1000]]),
  });
  assert.deepEqual(balancedMemory, new Map([[0, 1000]]));
});
