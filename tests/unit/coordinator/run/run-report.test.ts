import assert from "node:assert/strict";
import { test } from "node:test";
import { predictedBesideMeasured } from "../../../../src/coordinator/run/run-report.ts";
import { makePlan, NO_OVERRIDES } from "../../../../src/plan/index.ts";
import type { MemoryReport__Output } from "../../../../src/rpc/generated/pipelora/v1/MemoryReport.ts";
import type { StepTimes__Output } from "../../../../src/rpc/generated/pipelora/v1/StepTimes.ts";
import { gpus, model, NF4, request, WORK } from "../../plan/models.ts";

const GIB = 2 ** 30;

const EVALUATION = { rows: 8, requests: 1, microBatches: 2, meanTokens: 512, meanLabelTokens: 128, rowTokens: 128 };

const memory: MemoryReport__Output = {
  weightBytes: 5.5 * GIB,
  loraBytes: 0.3 * GIB,
  cacheBytes: 0,
  arenaBytes: 1 * GIB,
  arenaPeakBytes: 0.75 * GIB,
  processPeakBytes: 3 * GIB,
  allocatedBytes: 7.2 * GIB,
  deviceBytes: 7.75 * GIB,
  hostBytes: 0,
};

const report = (
  change: Partial<MemoryReport__Output>,
  times: StepTimes__Output | null = null,
  evaluationSeconds: number[] = [],
) =>
  predictedBesideMeasured(
    makePlan(request(model("qwen-7b"), gpus(1), { holding: NF4, work: { ...WORK, evaluation: EVALUATION } })),
    {
      reports: [{ memory: { ...memory, ...change }, steps: times === null ? 0 : 2, times, spans: [] }],
      evaluationSeconds,
    },
    WORK,
    { devices: gpus(1), rates: NO_OVERRIDES },
  );

test("a GPU's whole memory stands beside its prediction, the arena counted by its peak", () => {
  const { text, value } = report({});
  const [rank] = (value as { ranks: { device: Record<string, number> }[] }).ranks;
  assert.equal(rank!.device["peak_bytes"], 7.5 * GIB);
  assert.ok(Math.abs(rank!.device["context_bytes"]! - 0.55 * GIB) < 1);
  assert.match(text, /all of the device's memory 7\.50 GiB \(predicted \d\.\d\d GiB\), 563\.2 MiB of it the driver's/);
});

test("a CPU's report, and a GPU's whose driver can't tell, go without", () => {
  const { text, value } = report({ allocatedBytes: 0, deviceBytes: 0 });
  assert.equal((value as { ranks: { device: unknown }[] }).ranks[0]!.device, null);
  assert.doesNotMatch(text, /device's memory/);
});

test("a rank with peers tells what its tensors took and how long it waited, a rank alone does not", () => {
  const times = { computeMs: 80, totalMs: 100, waitMs: 20, linkMs: 0, reduceMs: 0, sentBytes: 0, processorMs: 80 };
  assert.match(
    report({}, { ...times, linkMs: 30 }).text,
    /moves tensors for 15\.0 ms beside that, sends .*B of them and waits 10\.0 ms/,
  );
  assert.doesNotMatch(report({}, times).text, /waits/);
});

test("evaluations stand beside their prediction, on average; a run without any says nothing of it", () => {
  const { text, value } = report({}, null, [0.25, 0.75]);
  assert.equal((value as { evaluation_ms: number }).evaluation_ms, 500);
  assert.match(text, /evaluation: 500\.0 ms \(predicted \d+\.\d\)/);
  assert.doesNotMatch(report({}).text, /evaluation/);
});
