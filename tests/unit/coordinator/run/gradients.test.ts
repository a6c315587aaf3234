import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesOf } from "../../../../src/common/bytes.ts";
import { clipFactor, gradientNorm } from "../../../../src/coordinator/run/steps/gradients.ts";

const result = (matrices: readonly { id: number; square: number }[]) => ({
  matrixIds: bytesOf(Int32Array.from(matrices, ({ id }) => id)),
  gradSquares: bytesOf(Float64Array.from(matrices, ({ square }) => square)),
});

test("the norm has the same bits however matrices are spread over ranks", () => {
  const matrices = Array.from({ length: 101 }, (_, id) => ({ id, square: id % 2 === 0 ? 1 / (id + 3) : 1e-9 * id }));
  const whole = gradientNorm([result(matrices)]);
  const split = gradientNorm([result(matrices.slice(41)), result([]), result(matrices.slice(0, 41))]);
  assert.equal(split, whole);
  assert.equal(gradientNorm([result([...matrices].reverse())]), whole);
  const expected = Math.sqrt(matrices.reduce((sum, { square }) => sum + square, 0));
  assert.equal(whole, expected);
});

test("clipping shortens only what is too long", () => {
  assert.equal(clipFactor(0.5, 1), 1);
  assert.equal(clipFactor(2, 1), 1 / (2 + 1e-6));
  assert.equal(clipFactor(100, 0), 1);
});
