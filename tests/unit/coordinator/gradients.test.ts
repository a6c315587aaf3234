import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesOf } from "../../../src/common/bytes.ts";
import { clipFactor, gradientNorm } from "../../../src/coordinator/run/gradients.ts";

const result = (pairs: readonly { moduleId: number; a: number; b: number }[]) => ({
  moduleIds: bytesOf(Int32Array.from(pairs, ({ moduleId }) => moduleId)),
  gradSquares: bytesOf(Float64Array.from(pairs.flatMap(({ a, b }) => [a, b]))),
});

test("the norm has the same bits however pairs are spread over ranks", () => {
  const pairs = Array.from({ length: 50 }, (_, moduleId) => ({ moduleId, a: 1 / (moduleId + 3), b: 1e-9 * moduleId }));
  const whole = gradientNorm([result(pairs)]);
  const split = gradientNorm([result(pairs.slice(20)), result([]), result(pairs.slice(0, 20))]);
  assert.equal(split, whole);
  const expected = Math.sqrt(pairs.reduce((sum, { a, b }) => sum + a + b, 0));
  assert.equal(whole, expected);
});

test("clipping shortens only what is too long", () => {
  assert.equal(clipFactor(0.5, 1), 1);
  assert.equal(clipFactor(2, 1), 1 / (2 + 1e-6));
  assert.equal(clipFactor(100, 0), 1);
});
