import assert from "node:assert/strict";
import { test } from "node:test";
import { predictedCompute, stepAtMeasuredCompute } from "../../../src/coordinator/planning/prediction.ts";
import { makePlan, NO_OVERRIDES, type PlannedSegment, predictTime, type Work } from "../../../src/plan/index.ts";
import { quickPassesTime } from "../../../src/plan/time/step-time.ts";
import { gpus, model, NF4, request, WORK } from "../plan/models.ts";

const qwen = model("qwen-7b");

function plan(devices: number, work: Work) {
  return makePlan(request(qwen, gpus(devices), { holding: NF4, work, strategy: "balanced" }));
}

const keepingOf = ({
  offloadedBlocks: offloaded,
  checkpointedBlocks: checkpointed,
  cachedBlocks: cached,
}: PlannedSegment) => ({
  ...{ offloaded, checkpointed, cached },
});

test("a simulated step is the closed form where stages are nearly equal, and never shorter than the busiest rank", () => {
  for (const schedule of ["1f1b", "gpipe", "sequential"] as const) {
    for (const devices of [2, 4]) {
      const work: Work = { ...WORK, schedule };
      const asked = request(qwen, gpus(devices), { holding: NF4, work, strategy: "balanced" });
      const simulated = makePlan(asked);
      const closed = predictTime(asked, simulated.segments, simulated.segments.map(keepingOf), quickPassesTime);
      const [a, b] = [closed.step * 1e3, simulated.predicted!.stepTimeMs];
      assert.ok(Math.abs(a - b) < 0.06 * a, `${schedule} over ${devices}: ${a} and ${b}`);
      const busiest = Math.max(...predictedCompute(simulated, work.microBatches).values());
      assert.ok(b >= busiest);
      const { tokensPerSecond } = simulated.predicted!;
      assert.ok(Math.abs(tokensPerSecond * b - closed.tokensPerSecond * a) < 1e-3 * b);
    }
  }
});

test("workers that crowd a node's cores take at least its whole work at the cores' rate", () => {
  const devices = gpus(4);
  const work: Work = { ...WORK, schedule: "1f1b" };
  const planned = (crowded: readonly (readonly [string, number])[]) =>
    makePlan(
      request(qwen, devices, {
        holding: NF4,
        work,
        strategy: "balanced",
        rates: { ...NO_OVERRIDES, crowded: new Map(crowded) },
      }),
    );
  const apart = planned([]).predicted!.stepTimeMs;
  const crowded = planned([["a", 2]]);
  const total = [...predictedCompute(crowded, work.microBatches).values()].reduce((sum, ms) => sum + ms, 0);
  const { stepTimeMs } = crowded.predicted!;
  assert.ok(stepTimeMs >= total / 2 && stepTimeMs < 2.1 * apart, `${stepTimeMs}, alone ${apart}, work ${total}`);
});

test("a step at the compute times that were measured: the predicted one where those are as predicted, else theirs", () => {
  const work: Work = { ...WORK, schedule: "1f1b" };
  const request = { devices: gpus(2), rates: NO_OVERRIDES };
  const two = plan(2, work);
  const compute = [...predictedCompute(two, work.microBatches).values()];
  const at = (times: readonly number[]) => stepAtMeasuredCompute(two, work, request, times)!;
  const { stepTimeMs, updateMs } = two.predicted!;
  assert.ok(Math.abs(at(compute) - stepTimeMs) < 1e-6 * stepTimeMs);
  // Both at half the speed: all but the update and the links takes twice as long.
  const slow = at(compute.map((ms) => 2 * (ms - updateMs) + updateMs));
  assert.ok(slow > 1.9 * stepTimeMs && slow <= 2 * stepTimeMs, `${slow}, ${stepTimeMs}`);
  // A rank that became slow decides; one that became fast is waited with.
  const uneven = at([compute[0]!, 3 * compute[1]!]);
  assert.ok(uneven > 3 * (compute[1]! - updateMs) && uneven < 3.4 * compute[1]!, `${uneven}, ${compute}`);
  assert.ok(at([compute[0]! / 2, compute[1]!]) > compute[1]!);
});

test("ranks that predict no compute, or computed for less than an update, break no simulation", () => {
  const request = { devices: gpus(2), rates: NO_OVERRIDES };
  const two = plan(2, WORK);
  const { predicted } = two;
  const [first, second] = predicted!.segments;
  const idle = {
    ...two,
    predicted: { ...predicted!, segments: [{ ...first!, forwardMs: [0], backwardMs: [0] }, second!] },
  };
  const step = stepAtMeasuredCompute(idle, WORK, request, [5, 1000])!;
  assert.ok(step >= 1000 && step < 1100, `${step}`);
  const none = stepAtMeasuredCompute(two, WORK, request, [0, 0])!;
  assert.ok(none >= predicted!.updateMs && none < 100, `${none}`);
});

test("a single rank's step is what it computes, replicas' that of the slowest", () => {
  const request = { devices: gpus(1), rates: NO_OVERRIDES };
  assert.ok(Math.abs(stepAtMeasuredCompute(plan(1, WORK), WORK, request, [1234])! - 1234) < 1e-6);
  const replicated = { ...plan(1, WORK), replicas: [[0], [1]] };
  const both = { devices: gpus(2), rates: NO_OVERRIDES };
  assert.ok(Math.abs(stepAtMeasuredCompute(replicated, WORK, both, [1234, 2345])! - 2345) < 1e-6);
});

test("an evaluation is predicted as forward passes through the pipeline, which fills and drains once a request", () => {
  const evaluation = { ...WORK, rows: 100, requests: 3, microBatches: 40 };
  const work: Work = { ...WORK, evaluation };
  assert.equal(plan(2, WORK).predicted!.evaluationMs, null);
  for (const devices of [1, 2, 4]) {
    const { segments, evaluationMs } = plan(devices, work).predicted!;
    const forward = segments.map(({ forwardMs }) => forwardMs[0]!);
    const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
    const largest = Math.max(...forward);
    const through = sum(forward) + sum(segments.map(({ transferMs }) => transferMs));
    const expected = 40 * largest + 3 * (through - largest);
    assert.ok(Math.abs(evaluationMs! - expected) < 1e-9 * expected, `${devices}: ${evaluationMs} and ${expected}`);
  }
  const naive = plan(4, { ...work, schedule: "sequential" }).predicted!;
  const ways = naive.segments.reduce((total, { forwardMs, transferMs }) => total + forwardMs[0]! + transferMs, 0);
  assert.ok(Math.abs(naive.evaluationMs! - 40 * ways) < 1e-9 * 40 * ways);
  // Rows a quarter as long: less than half the time, whatever a step's are.
  const short = plan(2, { ...WORK, evaluation: { ...evaluation, meanTokens: 256, meanLabelTokens: 256 } }).predicted!;
  assert.ok(short.evaluationMs! < plan(2, work).predicted!.evaluationMs! / 2);
});
