import assert from "node:assert/strict";
import { test } from "node:test";
import { tracedSteps } from "../../../../src/common/traced-steps.ts";
import { chromeTrace } from "../../../../src/coordinator/run/tracing/chrome-trace.ts";

const BEGAN = Date.UTC(2026, 10, 29);

test("each rank's times are told on the coordinator's clock, from the first of all", () => {
  const span = { kind: "forward", step: 3, startMs: BEGAN + 5_010, endMs: BEGAN + 5_030, segment: 1, microBatch: 2 };
  const sent = { ...span, kind: "send", startMs: BEGAN - 970, endMs: BEGAN - 969.5, peer: 0 };
  const ranks = [
    { name: "a/cpu (one)", spans: [span], offsetMs: 5_000, errorMs: 0.1 },
    { name: "b/cpu (two)", spans: [sent], offsetMs: -1_000, errorMs: 0.2 },
  ];
  const trace = chromeTrace([{ step: 3, startMs: BEGAN + 4, endMs: BEGAN + 54 }], ranks) as {
    otherData: unknown;
    traceEvents: Record<string, unknown>[];
  };
  assert.deepEqual(trace.otherData, { began: new Date(BEGAN + 4).toISOString(), clock_error_ms: { 0: 0.1, 1: 0.2 } });
  const told = trace.traceEvents.filter(({ ph }) => ph !== "M");
  assert.deepEqual(
    told.map(({ ph, name, pid, ts, dur }) => [ph, name, pid, ts, dur]),
    [
      ["X", "step 3", 0, 0, 50_000],
      ["X", "forward 1/2", 1, 6_000, 20_000],
      ["b", "send 1/2 to rank 0", 2, 26_000, undefined],
      ["e", "send 1/2 to rank 0", 2, 26_500, undefined],
    ],
  );
  assert.equal(told[2]!["id"], told[3]!["id"]);
});

test("steps to trace: single ones and ranges", () => {
  assert.deepEqual(tracedSteps("3-5"), [3, 4, 5]);
  assert.deepEqual(tracedSteps("10-12, 1,11"), [1, 10, 11, 12]);
  for (const wrong of ["", "0", "5-3", "1-", "a", "1-33", "1-20,30-50", "1-9999999999999999"]) {
    assert.throws(() => tracedSteps(wrong), /such as 3-5/, wrong);
  }
});
