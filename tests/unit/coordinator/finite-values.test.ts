import assert from "node:assert/strict";
import { test } from "node:test";
import { assertFinite } from "../../../src/coordinator/run/checkpoints/run-files.ts";

for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
  test(`${bad} in a matrix is not saved`, () => {
    const of = (last: number) => [
      { name: "h.0.c_attn.lora_B.weight", part: "weight" as const, values: Float32Array.of(1, 2, last) },
    ];
    assertFinite(of(3), 1);
    assert.throws(() => assertFinite(of(bad), 1), { code: "PL_LOSS_NOT_FINITE", message: /h\.0\.c_attn\.lora_B/ });
  });
}
