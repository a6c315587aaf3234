import assert from "node:assert/strict";
import { test } from "node:test";
import { attemptReplicatedPlan, type Plan, type PlanRequest } from "../../../src/plan/index.ts";
import { Infeasible } from "../../../src/plan/plan.ts";
import { GIB, gpus, model, NF4, request } from "./models.ts";

const qwen = model("qwen-7b");

function planned(changes: Partial<PlanRequest>, devices: number, replicas: number): Plan {
  const plan = attemptReplicatedPlan(request(qwen, gpus(devices), { holding: NF4, ...changes }), replicas);
  if (plan instanceof Infeasible) throw plan.explain();
  return plan;
}

test("replicas are cut alike over consecutive devices, and together nearly so many times as fast", () => {
  const one = planned({}, 2, 1);
  const two = planned({}, 4, 2);
  assert.deepEqual(two.replicas, [
    [0, 1],
    [2, 3],
  ]);
  assert.deepEqual(two.segments, one.segments);
  assert.deepEqual(
    two.devices.map(({ device, rank, segments }) => ({ device, rank, segments })),
    [0, 1, 2, 3].map((id) => ({ device: id, rank: id, segments: one.devices[id % 2]!.segments })),
  );
  const ratio = two.predicted!.tokensPerSecond / one.predicted!.tokensPerSecond;
  assert.ok(ratio < 2 && ratio > 1.9, `${ratio}`);
  assert.ok(two.predicted!.sumMs > 0);
  assert.equal(one.predicted!.sumMs, 0);
});

test("the smaller device at each place decides; devices left over are named", () => {
  const maxMemory = new Map([
    [0, 70 * GIB],
    [1, 5 * GIB],
    [2, 5 * GIB],
    [3, 70 * GIB],
  ]);
  const tight = planned({ maxMemory }, 5, 2);
  for (const { memory } of tight.devices.slice(0, 4)) assert.ok(memory.total <= 5 * GIB);
  assert.deepEqual(tight.devices[4]!.segments, []);
  assert.match(tight.warnings.join(), /1 of 5 devices are left over/);
});

test("more replicas than devices do not fit", () => {
  assert.throws(() => planned({}, 2, 3), { code: "PL_PLACEMENT_INFEASIBLE" });
});
