import assert from "node:assert/strict";
import { test } from "node:test";
import { PipeloraError } from "../../../src/common/errors.ts";
import { assertComputable } from "../../../src/plan/index.ts";
import { cpus, gpus, model } from "./models.ts";

function refused(headDim: number, devices: Parameters<typeof assertComputable>[1]): PipeloraError | null {
  const { shape } = model("qwen3-0.6b");
  try {
    assertComputable({ ...shape, headDim }, devices);
    return null;
  } catch (error) {
    assert.ok(error instanceof PipeloraError && error.code === "PL_MODEL_UNSUPPORTED");
    return error;
  }
}

test("a head_dim that the engine does not compute is refused with what it is, what is expected and what to do", () => {
  for (const headDim of [2, 64, 96, 128, 192, 250, 256]) assert.equal(refused(headDim, gpus(2)), null, `${headDim}`);
  for (const headDim of [2, 80, 256, 300, 1024]) assert.equal(refused(headDim, cpus(2)), null, `${headDim}`);
  const onGpu = refused(300, gpus(1))!;
  assert.match(onGpu.message, /GPUs.*at most 256.*head_dim is 300/);
  assert.match(onGpu.hint ?? "", /--workers N/);
  assert.match(refused(1026, cpus(1))!.message, /CPU workers.*at most 1024.*1026/);
  assert.ok(refused(300, [...cpus(1), ...gpus(1)]) !== null);
});
