import assert from "node:assert/strict";
import { test } from "node:test";
import type { LinkDtype } from "../../../src/common/dtype.ts";
import { linkKey, makePlan, type PlanRequest } from "../../../src/plan/index.ts";
import { gpus, model, request, WORK } from "./models.ts";

const qwen = model("qwen-7b");
const HIDDEN = 4096;

/** Over two GPUs with so many bytes a second between them. */
function plan(linkDtype: LinkDtype | null, changes: Partial<PlanRequest> = {}, bytesPerSecond = 1e9) {
  const links = new Map([[linkKey(0, 1), { bytesPerSecond, latency: 0, compute: 0 }]]);
  return makePlan(
    request(qwen, gpus(2), {
      strategy: "balanced",
      rates: { measured: new Map(), links, crowded: new Map() },
      linkDtype,
      ...changes,
    }),
  );
}

test("a plan counts the bytes that links carry, and their scales", () => {
  for (const [compute, dtype, perToken] of [
    ["bfloat16", null, 2 * HIDDEN],
    ["bfloat16", "float8_e4m3fn", HIDDEN + 4],
    ["float32", null, 4 * HIDDEN],
    ["float32", "bfloat16", 2 * HIDDEN],
    ["float32", "float8_e4m3fn", HIDDEN + 4],
    ["float16", "float8_e4m3fn", HIDDEN + 4],
  ] as const) {
    const { predicted } = plan(dtype, { computeDtype: compute });
    assert.equal(predicted!.messageBytes, perToken * WORK.meanTokens);
    assert.ok(Math.abs(predicted!.segments[0]!.transferMs - (perToken * WORK.meanTokens) / 1e6) < 1e-9);
  }
});

test("over a slow link a step is predicted to gain what its messages lose", () => {
  const times = (dtype: LinkDtype | null, rate: number) => plan(dtype, {}, rate).predicted!.stepTimeMs;
  // So slow that the link is all that counts: half the bytes, half the step.
  assert.ok(Math.abs(times("float8_e4m3fn", 1e6) / times(null, 1e6) - (HIDDEN + 4) / (2 * HIDDEN)) < 0.02);
  assert.ok(times("float8_e4m3fn", 1e13) / times(null, 1e13) > 0.99);
});

test("memory has room for a tensor beside what it is on a link", () => {
  const workspace = (dtype: LinkDtype | null) => plan(dtype).devices.map(({ memory }) => memory.workspace);
  const plain = workspace(null);
  for (const [device, bytes] of workspace("float8_e4m3fn").entries()) {
    assert.equal(bytes - plain[device]!, 2 * (HIDDEN + 4) * WORK.tokens);
  }
});
