import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { loadEngine } from "../../../src/engine/index.ts";
import { initLora } from "../../../src/formats/lora-init.ts";
import { openSafetensors, readFloat32 } from "../../../src/formats/safetensors.ts";
import { baseInit, takeFrom } from "../../../src/worker/weights/base-inits.ts";
import { distance } from "../../support/models/distance.ts";
import { fixture } from "../../unit/shared-data.ts";

const addon = loadEngine();
const THREADS = 2;

/** scale B A, [out, in]. */
async function product(
  b: Float32Array,
  a: Float32Array,
  out: number,
  input: number,
  scale: number,
): Promise<Float32Array> {
  const sum = new Float32Array(out * input);
  await addon.addLowRank(new Uint8Array(sum.buffer), "float32", out, input, a, b, scale);
  return sum;
}

const size = (values: Float32Array) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
const making = { addon, seed: 3, quantization: null, dtype: "float32" } as const;

/** Values that fall off slowly, with `equal` largest ones of the same size. */
function weightOf(out: number, input: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: out * input }, () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647 - 0.5;
  });
}

for (const kind of ["pissa", "olora", "orthogonal"]) {
  test(`${kind}: products and what is left of the weight are peft's`, async () => {
    const { tensors } = await openSafetensors(join(fixture("goldens/lora_init"), "init.safetensors"));
    for (const layer of [0, 1]) {
      const read = (name: string) => readFloat32(tensors.get(`${kind}.${layer}.${name}`)!);
      const weight = await read("weight");
      const [out, input] = tensors.get(`${kind}.${layer}.weight`)!.shape as [number, number];
      const r = tensors.get(`${kind}.${layer}.A`)!.shape[0]!;
      const [expected, residual] = [await read("product"), await read("residual")];
      const [a, b] = [await read("A"), await read("B")];
      // The golden's own scale, which is not written down.
      const plain = await product(b, a, out, input, 1);
      const scale = kind === "orthogonal" ? 1 : size(expected) / size(plain);
      if (kind === "orthogonal") {
        const drawn = initLora({ name: "m", r, in: input, out }, { initLoraWeights: "orthogonal" }, 5);
        assert.ok(size(await product(drawn.b, drawn.a, out, input, 1)) < 1e-6 * size(drawn.a) * size(drawn.b));
        assert.ok(Math.abs(size(drawn.a) / size(a) - 1) < 0.2 && Math.abs(size(drawn.b) / size(b) - 1) < 0.2);
        assert.deepEqual(residual, weight);
        continue;
      }
      const pair = { module: "m", r, scale, in: input, out };
      const taken = await takeFrom(weight, pair, baseInit(kind)!, { ...making, threads: THREADS });
      assert.ok(distance(await product(taken.b, taken.a, out, input, scale), expected) < 1e-4);
      assert.ok(distance(taken.rest!, residual) < 1e-4);
      assert.ok(Math.abs(size(taken.a) / size(a) - 1) < 1e-4);
    }
  });
}

test("singular values of any shape and rank: the residual is the least there is, on any number of threads the same bits", async () => {
  for (const [out, input, r] of [
    [40, 30, 1],
    [30, 40, 30],
    [7, 200, 3],
    [200, 7, 7],
    [1, 9, 1],
    [96, 96, 12],
  ] as const) {
    const weight = weightOf(out, input, 7 * out + input);
    const all = await addon.lowRank(weight, [out, input], Math.min(out, input), "svd", -1, 1, 1);
    const some = await addon.lowRank(weight, [out, input], r, "svd", -1, 2, 2);
    const least = Math.sqrt(all.values.slice(r).reduce((sum, value) => sum + value * value, 0));
    const b = some.left.map((value, at) => value * some.values[at % r]!);
    const rest = Float32Array.from(weight);
    await addon.addLowRank(new Uint8Array(rest.buffer), "float32", out, input, some.right, b, -1);
    assert.ok(
      Math.abs(size(rest) - least) < 1e-5 * size(weight),
      `${out} × ${input}, rank ${r}: ${size(rest)}, least ${least}`,
    );
    assert.deepEqual(await addon.lowRank(weight, [out, input], r, "svd", -1, 2, 1), some);
    const rough = await addon.lowRank(weight, [out, input], r, "svd", 4, 2, 2);
    assert.ok(rough.values[0]! <= all.values[0]! * (1 + 1e-5) && rough.values[0]! > 0.8 * all.values[0]!);
  }
  // No direction at all, the same one twice, and two of one size.
  const zero = await addon.lowRank(new Float32Array(12), [3, 4], 2, "svd", -1, 1, 1);
  assert.ok([...zero.left, ...zero.values, ...zero.right].every(Number.isFinite));
  const identity = Float32Array.from({ length: 36 }, (_, at) => (at % 7 === 0 ? 1 : 0));
  assert.ok(
    (await addon.lowRank(identity, [6, 6], 4, "svd", -1, 1, 1)).values.every((value) => Math.abs(value - 1) < 1e-6),
  );
  const flat = await addon.lowRank(new Float32Array(12).fill(1), [3, 4], 2, "qr", -1, 1, 1);
  assert.ok([...flat.left, ...flat.right].every(Number.isFinite));
  await assert.rejects(addon.lowRank(identity, [6, 6], 7, "svd", -1, 1, 1), { code: "PL_TENSOR_MISMATCH" });
});

test("loftq: A and B make up for the largest part of what 4 bits lose", async () => {
  const [out, input, r] = [64, 128, 8];
  const weight = weightOf(out, input, 11);
  const quantization = { method: "4bit", quantType: "nf4", doubleQuant: true } as const;
  const pair = { module: "m", r, scale: 1, in: input, out };
  const { a, b, rest } = await takeFrom(weight, pair, baseInit("loftq")!, {
    ...making,
    quantization,
    threads: THREADS,
  });
  assert.equal(rest, null);
  const gained = await product(b, a, out, input, 1);
  const hold = { ...quantization, dtype: "float32", blockSize: 64 } as const;
  const tensors = await addon.quantize(new Uint8Array(weight.buffer), "float32", [out, input], hold, 1);
  const { packedOf } = await import("../../../src/formats/quantized-state.ts");
  const held = await addon.dequantize(packedOf(tensors, hold, [out, input]), "float32", 1);
  const values = new Float32Array(held.buffer, held.byteOffset, weight.length);
  const before = size(weight.map((value, at) => value - values[at]!));
  const after = size(weight.map((value, at) => value - values[at]! - gained[at]!));
  assert.ok(after < 0.9 * before, `${after}, before ${before}`);
});
