import assert from "node:assert/strict";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { float32Of } from "../../../src/common/bytes.ts";
import { type DeviceTensor, type Engine, type EngineOptions, loadEngine } from "../../../src/engine/index.ts";
import { smallArch } from "../../support/models/small-arch.ts";

const OPTIONS: EngineOptions = {
  device: "cpu",
  threads: 1,
  computeDtype: "float32",
  arch: smallArch(),
  arenaBytes: 64 << 20,
};
const COLUMNS = 1024;

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

async function withEngine(body: (engine: Engine) => Promise<void>): Promise<void> {
  const engine = await loadEngine().openEngine(OPTIONS);
  try {
    await body(engine);
  } finally {
    await engine.close();
  }
}

/** A row of `value` in memory of its own: Buffer.alloc's may be a slice of a pool. */
function row(value: number): Uint8Array {
  return new Uint8Array(new Float32Array(COLUMNS).fill(value).buffer);
}

/** Keeps the engine's thread busy, so that what comes after is queued for a while. */
function busy(engine: Engine): Promise<DeviceTensor> {
  return engine.write([new Uint8Array(32 << 20)], [8192, COLUMNS], "float32");
}

test("an engine is promised: what can't be made rejects, and so does every call once it is closed", async () => {
  const { openEngine } = loadEngine();
  await assert.rejects(openEngine({ ...OPTIONS, device: "cpu:7" }), { code: "PL_DEVICE_UNAVAILABLE" });
  await assert.rejects(openEngine({ ...OPTIONS, threads: 0 }), { code: "PL_TENSOR_MISMATCH" });
  await assert.rejects(openEngine(null as never), { code: "PL_TENSOR_MISMATCH" });
  await assert.rejects(openEngine({ ...OPTIONS, arenaBytes: 2 ** 50 }), { code: "PL_OUT_OF_MEMORY" });
  const engine = await openEngine(OPTIONS);
  await engine.close();
  await engine.close();
  await assert.rejects(engine.zeroGrad(), { code: "PL_ENGINE_FAILED" });
  await assert.rejects(engine.matrixNames(), { code: "PL_ENGINE_FAILED" });
});

test("arrays in use live on by themselves: the list they came in may be emptied and collected", async () => {
  await withEngine(async (engine) => {
    const first = busy(engine);
    const pieces = Array.from({ length: 256 }, (_, i) => row(i));
    const writing = engine.write(pieces, [256, COLUMNS], "float32");
    pieces.length = 0;
    for (let round = 0; round < 4; round++) {
      collect();
      for (let i = 0; i < 256; i++) row(-1);
    }
    (await first).free();
    const tensor = await writing;
    const values = float32Of(await engine.read(tensor));
    for (let i = 0; i < 256; i++) assert.equal(values[i * COLUMNS], i);

    const again = busy(engine);
    const into = [row(0), row(0)];
    const kept = into.map(({ buffer }) => new WeakRef(buffer));
    const two = await engine.write([row(5), row(6)], [2, COLUMNS], "float32");
    const reading = engine.readInto(two, into);
    const [a, b] = [into[0]!, into[1]!];
    into.splice(0, 2, row(9), row(9));
    collect();
    await reading;
    await again;
    assert.deepEqual([float32Of(a)[0], float32Of(b)[COLUMNS - 1]], [5, 6]);
    assert.ok(kept.every((reference) => reference.deref() !== undefined));
  });
});

test("a copy on the device stays when what it was made of is freed; a freed tensor is not copied", async () => {
  await withEngine(async (engine) => {
    const tensor = await engine.write([row(4), row(7)], [2, COLUMNS], "float32");
    const copied = await engine.copy(tensor);
    tensor.free();
    await busy(engine);
    assert.deepEqual(copied.shape, [2, COLUMNS]);
    assert.deepEqual(
      float32Of(await engine.read(copied)),
      Float32Array.from([...float32Of(row(4)), ...float32Of(row(7))]),
    );
    await assert.rejects(engine.copy(tensor), { code: "PL_TENSOR_MISMATCH" });
  });
});

test("an array that is transferred while the engine uses it rejects", async () => {
  await withEngine(async (engine) => {
    const first = busy(engine);
    const piece = row(3);
    const writing = engine.write([piece], [1, COLUMNS], "float32");
    const moved = structuredClone(piece.buffer, { transfer: [piece.buffer as ArrayBuffer] });
    await assert.rejects(writing, { code: "PL_TENSOR_MISMATCH", message: /transferred or resized/ });
    assert.equal(moved.byteLength, 4 * COLUMNS);
    await first;
  });
});

test("tensors that are dropped while the engine closes, by call or by collection, leave it whole", async () => {
  for (let round = 0; round < 8; round++) {
    const engine = await loadEngine().openEngine(OPTIONS);
    const tensors = await Promise.all(
      Array.from({ length: 64 }, () => engine.write([row(1)], [1, COLUMNS], "float32")),
    );
    const work = busy(engine);
    const closing = engine.close();
    // Refused, with the last name of a tensor in hand.
    const refused = Promise.allSettled(tensors.splice(0, 32).map((tensor) => engine.read(tensor)));
    for (const tensor of tensors.splice(0, 16)) tensor.free();
    tensors.length = 0;
    collect();
    await work;
    for (const result of await refused) assert.equal(result.status, "rejected");
    await closing;
    collect();
  }
});

test("memory of freed tensors is there for the next call", async () => {
  await withEngine(async (engine) => {
    const half = () => engine.write([new Uint8Array(40 << 20)], [10240, COLUMNS], "float32");
    const first = await half();
    await assert.rejects(half(), { code: "PL_OUT_OF_MEMORY" });
    first.free();
    (await half()).free();
    await assert.rejects(engine.read(first), { code: "PL_TENSOR_MISMATCH" });
  });
});
