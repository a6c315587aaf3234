import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { fromFloat32, toFloat32 } from "../../../src/formats/half.ts";

const every16 = new Uint8Array(Uint16Array.from({ length: 65536 }, (_, bits) => bits).buffer);

for (const dtype of ["float16", "bfloat16"] as const) {
  test(`${dtype}: every value survives the way through float32`, () => {
    const values = toFloat32(every16, dtype)!;
    const back = new Uint16Array(fromFloat32(values, dtype).buffer);
    for (let bits = 0; bits < 65536; bits++) {
      if (Number.isNaN(values[bits]))
        assert.ok(Number.isNaN(toFloat32(new Uint8Array(back.slice(bits, bits + 1).buffer), dtype)![0]));
      else assert.equal(back[bits], bits);
    }
  });

  test(`${dtype}: rounds to the nearest, ties to even`, () => {
    const positive = toFloat32(every16, dtype)!.slice(0, dtype === "float16" ? 0x7c00 : 0x7f80);
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: positive.length - 2 }),
        fc.float({ min: 0, max: 1, noNaN: true }),
        (at, share) => {
          const [low, high] = [positive[at]!, positive[at + 1]!];
          const value = Math.fround(low + (high - low) * share);
          const [found] = new Uint16Array(fromFloat32(Float32Array.of(value), dtype).buffer);
          const toLow = value - low;
          const toHigh = high - value;
          const expected = toLow < toHigh || (toLow === toHigh && at % 2 === 0) ? at : at + 1;
          assert.equal(found, expected);
        },
      ),
    );
  });
}
