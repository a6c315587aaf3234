import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesOf, float32Of } from "../../../src/common/bytes.ts";
import { type Engine, loadEngine } from "../../../src/engine/index.ts";
import { smallArch } from "../../support/models/small-arch.ts";

async function withEngine(computeDtype: "float32" | "bfloat16", body: (engine: Engine) => Promise<void>) {
  const engine = await loadEngine().openEngine({
    ...{ device: "cpu", threads: 1, computeDtype, arch: smallArch(), arenaBytes: 16 << 20 },
  });
  try {
    await body(engine);
  } finally {
    await engine.close();
  }
}

/** What e4m3 stands for. */
function numberOf(code: number): number {
  const [exponent, fraction] = [(code >> 3) & 15, code & 7];
  if ((code & 0x7f) === 0x7f) return Number.NaN;
  const magnitude = exponent === 0 ? fraction * 2 ** -9 : (8 + fraction) * 2 ** (exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

test("a tensor's rows go over a link as e4m3 codes, then the scale; and come back as those stand for", async () => {
  await withEngine("float32", async (engine) => {
    for (const [rows, columns] of [
      [1, 1],
      [3, 5],
      [2, 64],
      [7, 129],
    ] as const) {
      const values = Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i * 7.3) * 10 ** ((i % 9) - 4));
      if (columns > 4) values[3] = Number.NaN;
      const tensor = await engine.write([bytesOf(values)], [rows, columns], "float32");
      const coded = await engine.encode(tensor, "float8_e4m3fn");
      assert.deepEqual([coded.shape, coded.dtype], [[rows, columns + 4], "float8_e4m3fn"]);
      assert.equal(coded.bytes, rows * (columns + 4));
      await assert.rejects(engine.read(tensor), { code: "PL_TENSOR_MISMATCH" });
      const bytes = await engine.read(coded);
      const back = float32Of(await engine.read(await engine.decode(coded)));
      assert.equal(back.length, values.length);
      for (let row = 0; row < rows; row++) {
        const at = row * (columns + 4);
        const scale = bytes.readFloatLE(at + columns);
        const own = values.subarray(row * columns, (row + 1) * columns);
        const largest = Math.max(...own.filter((value) => !Number.isNaN(value)).map(Math.abs));
        assert.ok(Math.abs(scale / Math.max(largest / 448, 2 ** -126) - 1) < 1e-6);
        for (let column = 0; column < columns; column++) {
          const got = back[row * columns + column]!;
          assert.equal(Number.isNaN(got), Number.isNaN(own[column]!));
          if (!Number.isNaN(got)) assert.equal(got, Math.fround(numberOf(bytes[at + column]!) * scale));
        }
      }
    }
  });
});

test("bfloat16 under float32 compute rounds each number once; what a link can't carry is refused", async () => {
  await withEngine("float32", async (engine) => {
    const values = Float32Array.of(1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, -3.14159274, Number.POSITIVE_INFINITY, 1e-40);
    const tensor = () => engine.write([bytesOf(values)], [2, 3], "float32");
    const coded = await engine.encode(await tensor(), "bfloat16");
    assert.deepEqual([coded.shape, coded.dtype, coded.bytes], [[2, 3], "bfloat16", 12]);
    const back = float32Of(await engine.read(await engine.decode(coded)));
    assert.deepEqual([...back.slice(0, 5)], [1, 1, 1 + 2 ** -6, -3.140625, Number.POSITIVE_INFINITY]);
    await assert.rejects(engine.encode(await tensor(), "int8" as never), { code: "PL_TENSOR_MISMATCH" });
    // As a peer may send it: scales without numbers.
    const empty = await engine.write([new Uint8Array(8)], [2, 4], "float8_e4m3fn");
    await assert.rejects(engine.decode(empty), { code: "PL_TENSOR_MISMATCH" });
    const whole = await engine.write([new Uint8Array(8)], [2, 1], "int32");
    await assert.rejects(engine.decode(whole), { code: "PL_TENSOR_MISMATCH" });
  });
});
