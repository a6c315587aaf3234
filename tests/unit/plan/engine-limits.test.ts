import assert from "node:assert/strict";
import { test } from "node:test";
import { PipeloraError } from "../../../src/common/errors.ts";
import { modelSpecFromConfig } from "../../../src/models/index.ts";
import { assertComputable } from "../../../src/plan/index.ts";
import { cpus, gpus, model } from "./models.ts";

function refused(headDim: number, devices: Parameters<typeof assertComputable>[1]): PipeloraError | null {
  const { shape, layers } = model("qwen3-0.6b");
  try {
    assertComputable({ shape: { ...shape, headDim }, layers }, devices);
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

test("heads of a gated delta net that are too wide for a GPU are refused by their key, on CPU workers they are not", () => {
  const spec = (key: string, width: number) =>
    modelSpecFromConfig({
      ...{ model_type: "qwen3_5_text", hidden_size: 64, intermediate_size: 128, num_hidden_layers: 5 },
      ...{ num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, vocab_size: 100, [key]: width },
    });
  for (const key of ["linear_key_head_dim", "linear_value_head_dim"]) {
    for (const width of [1, 12, 127, 128]) assertComputable(spec(key, width), gpus(1));
    for (const width of [129, 256]) {
      assertComputable(spec(key, width), cpus(1));
      assert.throws(
        () => assertComputable(spec(key, width), [...cpus(1), ...gpus(1)]),
        (error) => error instanceof PipeloraError && error.message.includes(`${key} is ${width}`),
      );
    }
  }
});

test("a GPU whose blocks lack the shared memory of a delta net's backward pass is refused by its capability", () => {
  const spec = (keyDim: number, valueDim: number) =>
    modelSpecFromConfig({
      ...{ model_type: "qwen3_next", hidden_size: 64, num_hidden_layers: 4, intermediate_size: 64 },
      ...{ num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, vocab_size: 100 },
      ...{ linear_key_head_dim: keyDim, linear_value_head_dim: valueDim },
    });
  const on = (major: number, minor: number) =>
    gpus(1, 80e9, "a card").map((gpu) => ({ ...gpu, capability: [major, minor] as const }));
  for (const [major, minor] of [
    [9, 0],
    [10, 0],
  ] as const)
    assertComputable(spec(128, 128), on(major, minor));
  for (const [major, minor] of [
    [7, 5],
    [8, 0],
    [8, 6],
    [8, 9],
    [12, 0],
  ] as const) {
    assertComputable(spec(16, 16), on(major, minor));
    assert.throws(
      () => assertComputable(spec(128, 128), [...gpus(1), ...on(major, minor)]),
      (error) =>
        error instanceof PipeloraError &&
        error.message.includes(`a card of compute capability ${major}.${minor}`) &&
        error.message.includes("180 KiB"),
    );
  }
  assertComputable(spec(128, 64), on(8, 0));
});
