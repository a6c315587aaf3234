import assert from "node:assert/strict";
import { test } from "node:test";
import type { DeviceKey } from "../../../src/plan/devices.ts";
import { attemptReplicatedPlan, makePlan, type PlanRequest } from "../../../src/plan/index.ts";
import { segmentLayers } from "../../../src/plan/keeping.ts";
import { predictMemory } from "../../../src/plan/memory.ts";
import { segmentsOf } from "../../../src/plan/segments.ts";
import { cpus, everyLinear, GIB, gpus, model, NF4, request, WORK } from "./models.ts";

const qwen = model("qwen-7b");
const lora = everyLinear(qwen).map((target) => ({ ...target, dropout: 0.1 }));
const onePass = (tokens: number, rowTokens: number): PlanRequest["work"] => ({
  ...WORK,
  ...{ microBatches: 1, tokens, labelTokens: tokens, meanTokens: tokens, meanLabelTokens: tokens, rowTokens },
});
const base = { holding: NF4, lora, activationOffload: "auto" } as const satisfies Partial<PlanRequest>;
const hosted = (hostMemoryBytes: number | null, name?: string) =>
  gpus(1, 80e9, name).map((device) => ({ ...device, hostMemoryBytes }));
const planned = (changes: Partial<PlanRequest>, devices = hosted(100 * GIB)) =>
  makePlan(request(qwen, devices, { ...base, work: onePass(8192, 2048), ...changes }));
const devicesAndHost = (gpu: number, host: number) =>
  new Map<DeviceKey, number>([
    [0, gpu],
    ["cpu", host],
  ]);
const blocksOf = (plan: ReturnType<typeof makePlan>) => {
  const { offloadedBlocks, checkpointedBlocks } = plan.segments[0]!;
  return [offloadedBlocks, checkpointedBlocks, 32 - offloadedBlocks - checkpointedBlocks];
};

test("activations of every fourth block or so wait on the host, in what an H100's link carries beside the forward pass", () => {
  const plan = planned({});
  const [offloaded, checkpointed, kept] = blocksOf(plan);
  assert.ok(offloaded! >= 6 && offloaded! <= 10, `${offloaded} blocks`);
  assert.deepEqual([checkpointed, kept], [32 - offloaded!, 0]);
  const { memory } = plan.devices[0]!;
  const whole = (8192 + 24576 + 8192 + 128 + 8192 + 44032 + 128) * 8192;
  assert.equal(memory.hostActivations, offloaded! * whole + checkpointed! * 8192 * 8192);
  assert.equal(memory.hostWeights, 151936 * 4096 * 2);
  const without = planned({ activationOffload: "off" });
  assert.deepEqual(blocksOf(without), [0, 32, 0]);
  assert.ok(memory.total < without.devices[0]!.memory.total - GIB);
  assert.ok(plan.predicted!.stepTimeMs < without.predicted!.stepTimeMs);
});

test("a slower bus, less memory on the host or what max_memory gives it carry fewer; CPUs and plain runs none", () => {
  const [most] = blocksOf(planned({}));
  const [slow] = blocksOf(planned({}, hosted(100 * GIB, "NVIDIA A100-SXM4-80GB")));
  assert.ok(slow! > 0);
  const [some] = blocksOf(planned({}, hosted(12 * GIB)));
  assert.ok(some! > 0 && some! < most!, `${some} of ${most}`);
  assert.deepEqual(blocksOf(planned({}, hosted(2 * GIB))), [0, 32, 0]);
  assert.deepEqual(blocksOf(planned({}, hosted(null))), [0, 32, 0]);
  const maxMemory = devicesAndHost(70 * GIB, 6 * GIB);
  const given = planned({ maxMemory });
  assert.equal(blocksOf(given)[0], some);
  assert.deepEqual(given.warnings, []);
  const unused = planned({ maxMemory, activationOffload: "off" });
  assert.match(unused.warnings.join(), /cpu budgets are not used/);
  assert.deepEqual(blocksOf(planned({ work: { ...onePass(8192, 2048), checkpointing: "none" } })), [0, 0, 32]);
  const cpu = makePlan(request(qwen, cpus(1), { ...base, work: onePass(512, 128) }));
  assert.deepEqual(blocksOf(cpu), [0, 32, 0]);
});

test("GPUs that work at the same time share the way to their host's memory, and the memory; idle ones do not", () => {
  const four = gpus(4).map((device) => ({ ...device, hostMemoryBytes: 400 * GIB }));
  const [alone] = blocksOf(planned({}, hosted(400 * GIB)));
  const replicas = (devices: typeof four) => {
    const plan = attemptReplicatedPlan(request(qwen, devices, { ...base, work: onePass(8192, 2048) }), devices.length);
    assert.ok("segments" in plan, "it fits");
    return plan;
  };
  // Two H100s find what each can carry, four share 140 GB/s: 0.7 of that, and inputs of the other blocks go the same way.
  assert.equal(blocksOf(replicas(four.slice(0, 2)))[0], alone);
  const [shared] = blocksOf(replicas(four));
  assert.ok(shared! >= 0.5 * alone! && shared! <= 0.75 * alone!, `${shared} of ${alone}`);
  const maxMemory = new Map<DeviceKey, number>([[0, 70 * GIB]]);
  assert.equal(blocksOf(planned({ maxMemory }, four))[0], alone);
  // Of 12 GiB for all a quarter, less an embedding, is too little for what one has alone.
  const poor = four.map((device) => ({ ...device, hostMemoryBytes: 24 * GIB }));
  assert.ok(blocksOf(replicas(poor))[0]! < shared!);
});

test("as few blocks recompute as the budget allows, and none waits on the host without need", () => {
  const work = { ...onePass(3072, 384), checkpointing: "auto" } as const;
  const tight = planned({ work, maxMemory: devicesAndHost(7.5 * GIB, 50 * GIB) });
  const [offloaded, checkpointed, kept] = blocksOf(tight);
  assert.ok(offloaded! > 0 && checkpointed! > 0 && kept! > 0, `${blocksOf(tight)}`);
  const { memory } = tight.devices[0]!;
  assert.ok(memory.total <= memory.budget && memory.total > memory.budget - 0.3 * GIB);
  assert.deepEqual(blocksOf(planned({ work })), [0, 0, 32]);
  // A little less than all of them need: a few wait on the host, none is computed again.
  const { total } = planned({ work }).devices[0]!.memory;
  const nearly = planned({ work, maxMemory: devicesAndHost(total - 0.5 * GIB, 50 * GIB) });
  assert.equal(blocksOf(nearly)[1], 0);
  assert.ok(blocksOf(nearly)[0]! > 0 && blocksOf(nearly)[0]! < 6, `${blocksOf(nearly)}`);
});

test("what fits only with activations on the host is planned so", () => {
  const maxMemory = devicesAndHost(8 * GIB, 50 * GIB);
  const plan = planned({ maxMemory });
  assert.ok(blocksOf(plan)[0]! > 0);
  assert.ok(plan.devices[0]!.memory.total <= 8 * GIB);
  for (const changes of [{ activationOffload: "off" }, { maxMemory: devicesAndHost(8 * GIB, 2 * GIB) }] as const) {
    assert.throws(() => planned({ maxMemory, ...changes }), { code: "PL_PLACEMENT_INFEASIBLE" });
  }
});

test("offloaded blocks are evenly spread, of the others the first ones recompute", () => {
  const segment = { index: 0, devices: [0], ranks: [0], firstLayer: 0, lastLayer: qwen.layers.length - 1 };
  const at = segmentLayers({ spec: qwen }, segment, { offloaded: 4, checkpointed: 10, cached: 0 });
  const blocks = at.filter(({ block }) => block !== null).map(({ activations }) => activations[0]);
  assert.equal(blocks.join(""), "orrrrrrrorrrkkkkokkkkkkkokkkkkkk");
});

// Gauged on H100s and H200s (native/bench/cuda_step.cpp): blocks kept and offloaded, GiB of the arena at its peak.
for (const [tokens, rowTokens, kept, offloaded, measured] of [
  [3072, 384, 0, 0, 1.13],
  [3072, 384, 32, 0, 8.93],
  [3072, 384, 8, 8, 2.52],
  [3072, 384, 7, 10, 2.25],
  [8192, 2048, 0, 9, 1.83],
  [8192, 8192, 1, 10, 1.88],
  [8192, 8192, 2, 10, 2.53],
] as const) {
  test(`an H100's arena with ${kept} blocks kept and ${offloaded} offloaded, ${tokens} tokens: within 5 %`, () => {
    const asked = request(qwen, gpus(1), { ...base, work: onePass(tokens, rowTokens) });
    const segments = segmentsOf(
      qwen.layers.map(() => [0]),
      [0],
    );
    const keeping = [{ offloaded, checkpointed: 32 - kept - offloaded, cached: 0 }];
    const { activations, workspace } = predictMemory(asked, segments, keeping).get(0)!;
    const predicted = (activations + workspace) / GIB;
    assert.ok(Math.abs(predicted / measured - 1) < 0.05, `${predicted} and ${measured}`);
  });
}
