import assert from "node:assert/strict";
import { test } from "node:test";
import { predictedCompute, withSimulatedStep } from "../../../src/coordinator/prediction.ts";
import { makePlan, NO_OVERRIDES, type Work } from "../../../src/plan/index.ts";
import { gpus, model, NF4, request, WORK } from "../plan/models.ts";

const qwen = model("qwen-7b");

function plan(devices: number, work: Work) {
  return makePlan(request(qwen, gpus(devices), { holding: NF4, work }));
}

test("a simulated step is the closed form where stages are nearly equal, and never shorter than the busiest rank", () => {
  for (const schedule of ["1f1b", "gpipe", "sequential"] as const) {
    for (const devices of [2, 4]) {
      const work: Work = { ...WORK, schedule };
      const closed = plan(devices, work);
      const simulated = withSimulatedStep(closed, work, { devices: gpus(devices), rates: NO_OVERRIDES });
      const [a, b] = [closed.predicted!.stepTimeMs, simulated.predicted!.stepTimeMs];
      assert.ok(Math.abs(a - b) < 0.06 * a, `${schedule} over ${devices}: ${a} and ${b}`);
      const busiest = Math.max(...predictedCompute(simulated, work.microBatches).values());
      assert.ok(b >= busiest);
      assert.ok(Math.abs(simulated.predicted!.tokensPerSecond * b - closed.predicted!.tokensPerSecond * a) < 1e-3 * b);
    }
  }
});

test("one segment has nothing to simulate", () => {
  const alone = plan(1, WORK);
  assert.equal(withSimulatedStep(alone, WORK, { devices: gpus(1), rates: NO_OVERRIDES }), alone);
});

test("workers that crowd a node's cores take at least its whole work at the cores' rate", () => {
  const work: Work = { ...WORK, schedule: "1f1b" };
  const devices = gpus(4);
  const rates = { ...NO_OVERRIDES, crowded: new Map([["a", 2]]) };
  const apart = withSimulatedStep(plan(4, work), work, { devices, rates: NO_OVERRIDES }).predicted!.stepTimeMs;
  const crowded = withSimulatedStep(plan(4, work), work, { devices, rates });
  const total = [...predictedCompute(crowded, work.microBatches).values()].reduce((sum, ms) => sum + ms, 0);
  const { stepTimeMs } = crowded.predicted!;
  assert.ok(stepTimeMs >= total / 2 && stepTimeMs < 2.1 * apart, `${stepTimeMs}, alone ${apart}, work ${total}`);
});
