import assert from "node:assert/strict";
import { test } from "node:test";
import { makePlan, type PlanRequest } from "../../../src/plan/index.ts";
import { everyLinear, gpus, model, NF4, PLAIN, request, WORK } from "./models.ts";

const qwen = model("qwen-7b");

// Steps measured on an H100, the last on an H200 (docs/performance.md): rows in one pass, base, checkpointing, milliseconds.
const MEASURED = [
  { tokens: 3072, labels: 3072, rowTokens: 384, holding: NF4, checkpointing: "none", stepMs: 176.3 },
  { tokens: 8192, labels: 8192, rowTokens: 2048, holding: NF4, checkpointing: "none", stepMs: 465.9 },
  { tokens: 3072, labels: 3072, rowTokens: 384, holding: PLAIN, checkpointing: "none", stepMs: 164 },
  { tokens: 1070, labels: 426, rowTokens: 67, holding: NF4, checkpointing: "none", stepMs: 75.7 },
  { tokens: 3072, labels: 3072, rowTokens: 384, holding: NF4, checkpointing: "all", stepMs: 219.6 },
] as const;

for (const { tokens, labels, rowTokens, holding, checkpointing, stepMs } of MEASURED) {
  test(`an H100's step of ${tokens} tokens, ${holding.quantization.method}, checkpointing ${checkpointing}: within 10 % without calibration`, () => {
    const counts = { tokens, labelTokens: labels, meanTokens: tokens, meanLabelTokens: labels, rowTokens };
    const work: PlanRequest["work"] = { ...WORK, ...counts, microBatches: 1, checkpointing };
    const { predicted } = makePlan(request(qwen, gpus(1), { holding, lora: everyLinear(qwen), work }));
    const ratio = predicted!.stepTimeMs / stepMs;
    assert.ok(Math.abs(ratio - 1) < 0.1, `${predicted!.stepTimeMs} ms and ${stepMs}: ${ratio}`);
  });
}
