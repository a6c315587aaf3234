import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { openAdapter } from "../../../src/formats/adapter.ts";
import { toFloat32 } from "../../../src/formats/half.ts";
import {
  float32Bytes,
  openSafetensors,
  readFloat32,
  readTensor,
  type TensorToWrite,
  writeSafetensors,
} from "../../../src/formats/safetensors.ts";
import { shared } from "../shared-data.ts";

const folder = await mkdtemp(join(tmpdir(), "pipelora-safetensors-"));
let files = 0;
const freshPath = () => join(folder, `${files++}.safetensors`);

const floats = (name: string, shape: number[], values: number[]): TensorToWrite => ({
  name,
  dtype: "float32",
  shape,
  data: () => float32Bytes(Float32Array.from(values)),
});

/** A file of any header and data, however wrong. */
async function handmade(header: unknown, data: number, prefix?: bigint): Promise<string> {
  const text = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(prefix ?? BigInt(text.length));
  const path = freshPath();
  await writeFile(path, Buffer.concat([length, text, Buffer.alloc(data)]));
  return path;
}

const rejects = (path: string, message: RegExp, code = "PL_CHECKPOINT_INVALID") =>
  assert.rejects(openSafetensors(path), (error: PipeloraError) => {
    assert.equal(error.code, code);
    assert.match(error.message, message);
    return true;
  });

describe("safetensors", () => {
  test("tensors made together go to their places, those of unknown size behind all", async () => {
    const path = freshPath();
    const made: string[] = [];
    const group = (name: string, text: string) => ({
      tensors: [
        { name: `${name}.codes`, dtype: "uint8", shape: [3] } as const,
        { name: `${name}.scale`, dtype: "float32", shape: [1] } as const,
        { name: `${name}.state`, mostBytes: 200 },
      ],
      data: async () => {
        made.push(name);
        return new Map([
          [`${name}.codes`, Uint8Array.of(1, 2, 3)],
          [`${name}.scale`, float32Bytes(Float32Array.of(0.5))],
          [`${name}.state`, Buffer.from(text)],
        ]);
      },
    });
    const total = await writeSafetensors(path, [
      group("b", "state of b"),
      floats("norm", [2], [1, 2]),
      group("a", "a's"),
    ]);
    assert.deepEqual(made, ["b", "a"]);
    assert.equal(total, 2 * (3 + 4) + 8 + "state of b".length + "a's".length);
    const { tensors } = await openSafetensors(path);
    assert.deepEqual([...tensors.keys()], ["a.scale", "b.scale", "norm", "a.codes", "b.codes", "b.state", "a.state"]);
    const text = async (name: string) => Buffer.from(await readTensor(tensors.get(name)!)).toString();
    assert.deepEqual([await text("a.state"), await text("b.state")], ["a's", "state of b"]);
    assert.deepEqual([...(await readFloat32(tensors.get("norm")!))], [1, 2]);
    assert.deepEqual([...(await readTensor(tensors.get("a.codes")!))], [1, 2, 3]);
    await assert.rejects(writeSafetensors(freshPath(), [group("c", "x".repeat(201))]), { code: "PL_INTERNAL" });
  });

  test("what is written is read back", async () => {
    const path = freshPath();
    const chunks = async function* () {
      yield Uint8Array.of(1, 2, 3);
      yield Uint8Array.of(4);
    };
    await writeSafetensors(path, [
      { name: "bytes", dtype: "uint8", shape: [2, 2], data: chunks },
      floats("b", [2], [1.5, -2]),
      floats("a", [], [7]),
      floats("empty", [0, 3], []),
    ]);
    const file = await openSafetensors(path);
    assert.deepEqual(file.metadata, { format: "pt" });
    assert.deepEqual([...file.tensors.keys()], ["a", "b", "empty", "bytes"]);
    assert.deepEqual([...(await readFloat32(file.tensors.get("b")!))], [1.5, -2]);
    assert.deepEqual([...(await readTensor(file.tensors.get("bytes")!))], [1, 2, 3, 4]);
    assert.deepEqual(file.tensors.get("a")?.shape, []);
    assert.equal(file.tensors.get("b")!.offset % 8, 4);
    await assert.rejects(readFloat32(file.tensors.get("bytes")!), { code: "PL_TENSOR_MISMATCH" });
  });

  test("any set of tensors survives", async () => {
    const tensor = fc.record({
      name: fc.string({ minLength: 1 }),
      values: fc.array(fc.float({ noNaN: true }), { maxLength: 20 }),
    });
    await fc.assert(
      fc.asyncProperty(fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 8 }), async (tensors) => {
        fc.pre(tensors.every(({ name }) => name !== "__metadata__"));
        const path = freshPath();
        await writeSafetensors(
          path,
          tensors.map(({ name, values }) => floats(name, [values.length], values)),
        );
        const file = await openSafetensors(path);
        assert.equal(file.tensors.size, tensors.length);
        for (const { name, values } of tensors)
          assert.deepEqual([...(await readFloat32(file.tensors.get(name)!))], values);
      }),
      { numRuns: 40 },
    );
  });

  test("a failed write leaves nothing behind and keeps the old file", async () => {
    const dir = await mkdtemp(join(tmpdir(), "pipelora-atomic-"));
    const path = join(dir, "x.safetensors");
    await writeSafetensors(path, [floats("a", [1], [1])]);
    const broken = { ...floats("b", [1], [2]), data: () => Promise.reject(new Error("disk on fire")) };
    await assert.rejects(writeSafetensors(path, [floats("a", [1], [3]), broken]), { code: "PL_OUTPUT_UNWRITABLE" });
    await assert.rejects(writeSafetensors(path, [{ ...floats("a", [2], [3]) }]), { code: "PL_INTERNAL" });
    assert.deepEqual(await readdir(dir), ["x.safetensors"]);
    assert.deepEqual([...(await readFloat32((await openSafetensors(path)).tensors.get("a")!))], [1]);
  });

  test("an unwritable folder", async () => {
    const file = freshPath();
    await writeFile(file, "");
    await assert.rejects(writeSafetensors(join(file, "x.safetensors"), []), { code: "PL_OUTPUT_UNWRITABLE" });
  });

  test("hostile files are refused before any tensor is read", async () => {
    const entry = (begin: number, end: number, shape = [(end - begin) / 4], dtype = "F32") => ({
      dtype,
      shape,
      data_offsets: [begin, end],
    });
    await rejects(join(folder, "absent"), /can't be opened/, "PL_MODEL_NOT_FOUND");
    const short = freshPath();
    await writeFile(short, "abc");
    await rejects(short, /truncated/);
    await rejects(await handmade({}, 0, 1n << 40n), /first 8 bytes say 1099511627776/);
    await rejects(await handmade({}, 0, 1000n), /truncated/);
    await rejects(await handmade("{nope", 0), /not JSON/);
    await rejects(await handmade("[1]", 0), /not a JSON object/);
    await rejects(await handmade({ a: 3 }, 0), /"a" has no description/);
    await rejects(await handmade({ a: entry(0, 4, [1], "F8_E4M3") }, 4), /float8_e4m3fn needs 1 bytes, has 4/);
    await rejects(await handmade({ a: entry(0, 4, [-1]) }, 4), /no shape/);
    await rejects(await handmade({ a: entry(0, 4, [2 ** 40, 2 ** 40]) }, 4), /needs/);
    await rejects(await handmade({ a: entry(0, 8, [1]) }, 8), /needs 4 bytes, has 8/);
    await rejects(await handmade({ a: entry(0, 4), b: entry(0, 4) }, 8), /overlap or hole/);
    await rejects(await handmade({ a: entry(0, 4), b: entry(8, 12) }, 12), /overlap or hole/);
    await rejects(await handmade({ a: entry(0, 4) }, 8), /truncated or padded/);
    await rejects(await handmade({ a: entry(0, 8) }, 4), /truncated or padded/);
    await rejects(await handmade({ a: { dtype: "F32", shape: [1], data_offsets: [0] } }, 4), /data_offsets/);
    await rejects(await handmade({ __metadata__: { a: 1 }, b: entry(0, 4) }, 4), /__metadata__/);
    const twice = `{"a":${JSON.stringify(entry(0, 4))},"\\u0061":${JSON.stringify(entry(0, 4))}}`;
    await rejects(await handmade(twice, 4), /"a" twice/);
    await rejects(await handmade(Buffer.from([0x7b, 0xff, 0x7d]).toString("latin1"), 0), /not JSON/);
  });

  test("garbage never gets past the checks as something else", async () => {
    await fc.assert(
      fc.asyncProperty(fc.oneof(fc.json(), fc.string()), fc.nat(64), async (header, data) => {
        const outcome = await openSafetensors(await handmade(header, data)).then(
          () => "read",
          (error: PipeloraError) => error.code,
        );
        assert.ok(["read", "PL_CHECKPOINT_INVALID"].includes(outcome), outcome);
      }),
      { numRuns: 100 },
    );
  });

  test("16-bit floats widen exactly", () => {
    const words = (...values: number[]) => new Uint8Array(Uint16Array.from(values).buffer);
    assert.deepEqual(
      [...toFloat32(words(0x3c00, 0xc000, 0x0001, 0x7c00, 0x3555), "float16")!],
      [1, -2, 2 ** -24, Number.POSITIVE_INFINITY, 0.333251953125],
    );
    assert.ok(Number.isNaN(toFloat32(words(0x7e00), "float16")![0]));
    assert.deepEqual([...toFloat32(words(0x3f80, 0xc049, 0x0000), "bfloat16")!], [1, -3.140625, 0]);
  });

  const adapter = shared("goldens/training/qwen1/adapter_init");
  test("bytes equal those of the reference implementation", { skip: adapter === null }, async () => {
    const { weights } = await openAdapter(adapter!);
    const path = freshPath();
    await writeSafetensors(
      path,
      [...weights.tensors]
        .map(([name, location]) => ({ name, ...location, data: () => readTensor(location) }))
        .reverse(),
    );
    assert.ok((await readFile(path)).equals(await readFile(weights.path)));
  });
});
