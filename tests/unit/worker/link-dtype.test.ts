import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesOf } from "../../../src/common/bytes.ts";
import type { LinkDtype } from "../../../src/common/dtype.ts";
import { type DeviceTensor, type Engine, loadEngine } from "../../../src/engine/index.ts";
import type { IncomingTensor } from "../../../src/links/link.ts";
import { fromDevice, toDevice } from "../../../src/worker/tensors.ts";
import { smallArch } from "../../support/models/small-arch.ts";

/** What a peer has of a tensor that came in pieces of `piece` bytes. */
async function received(engine: Engine, tensor: DeviceTensor, linkDtype: LinkDtype | null, piece: number) {
  const boundary = { engine, linkDtype };
  const outgoing = await fromDevice(boundary, tensor);
  const pieces: Uint8Array[] = [];
  for (let left = outgoing.byteLength; left > 0; left -= piece) pieces.push(new Uint8Array(Math.min(left, piece)));
  await outgoing.copyTo(pieces);
  let released = 0;
  const { shape, dtype } = outgoing;
  const incoming: IncomingTensor = { shape, dtype, pieces, release: () => void released++ };
  const came = await toDevice(boundary, incoming);
  assert.equal(released, 1);
  return { came, bytes: outgoing.byteLength };
}

test("a peer gets a tensor of the same shape and dtype, from whatever pieces it came in", async () => {
  const engine = await loadEngine().openEngine({
    ...{ device: "cpu", threads: 1, computeDtype: "float32", arch: smallArch(), arenaBytes: 16 << 20 },
  });
  try {
    const values = Float32Array.from({ length: 5 * 33 }, (_, i) => Math.cos(i) * 3 ** (i % 5));
    const sent = () => engine.write([bytesOf(values)], [5, 33], "float32");
    for (const [linkDtype, perToken, off] of [
      [null, 4 * 33, 0],
      ["bfloat16", 2 * 33, 2 ** -8],
      ["float8_e4m3fn", 33 + 4, 2 ** -4],
    ] as const) {
      const whole = await received(engine, await sent(), linkDtype, 1 << 20);
      assert.equal(whole.bytes, 5 * perToken);
      assert.deepEqual([whole.came.shape, whole.came.dtype], [[5, 33], "float32"]);
      const bits = await engine.read(whole.came);
      for (const piece of [4, 12, 64]) {
        const again = await received(engine, await sent(), linkDtype, piece);
        assert.deepEqual(await engine.read(again.came), bits);
      }
      const got = new Float32Array(bits.buffer, bits.byteOffset, values.length);
      for (const [i, value] of values.entries()) {
        const row = values.subarray(33 * Math.floor(i / 33), 33 * Math.floor(i / 33) + 33);
        const largest = Math.max(...row.map(Math.abs));
        assert.ok(Math.abs(got[i]! - value) <= off * Math.max(Math.abs(value), largest / 28672));
      }
    }
    // What a peer sends in another dtype than both agreed on is refused, and gives its room back.
    await assert.rejects(toDevice({ engine, linkDtype: "float8_e4m3fn" }, { ...intruder(), release: () => {} }), {
      code: "PL_TENSOR_MISMATCH",
    });
  } finally {
    await engine.close();
  }
});

function intruder(): Omit<IncomingTensor, "release"> {
  return { shape: [2, 3], dtype: "int32", pieces: [new Uint8Array(24)] };
}
