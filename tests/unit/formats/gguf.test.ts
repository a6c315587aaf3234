import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gguf } from "@huggingface/gguf";
import fc from "fast-check";
import { bool, float32, list, string, texts, uint32 } from "../../../src/formats/gguf/metadata.ts";
import {
  encodeMxfp4,
  encodeValues,
  GGUF_TYPES,
  type RoundedType,
  typeBytes,
} from "../../../src/formats/gguf/tensor-types.ts";
import { type GgufTensor, writeGguf } from "../../../src/formats/gguf/write.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const once = (bytes: Uint8Array) =>
  async function* () {
    yield bytes;
  };

test("@huggingface/gguf reads back every kind of value and every tensor's place", async (t) => {
  const path = join(temporaryFolder(t), "all.gguf");
  const words = ["", "Ġthe", "龍\u0000end", "😀".repeat(40)];
  const metadata = new Map([
    ["general.architecture", string("llama")],
    ["general.name", string("naïve")],
    ["llama.block_count", uint32(4_000_000_000)],
    ["llama.rope.freq_base", float32(0.1)],
    ["tokenizer.ggml.add_bos_token", bool(true)],
    ["tokenizer.ggml.tokens", texts(words)],
    ["tokenizer.ggml.scores", list("float32", [-1.5, 0])],
    ["tokenizer.ggml.token_type", list("int32", [-3, 6])],
    ["llama.pattern", list("bool", [1, 0, 1])],
  ]);
  const values = Float32Array.from({ length: 96 }, (_, i) => i - 40);
  const types: RoundedType[] = ["f32", "f16", "bf16", "q8_0"];
  const tensors = types.map(
    (type): GgufTensor => ({ name: `${type}.weight`, shape: [3, 32], type, data: once(encodeValues(values, type)) }),
  );
  tensors.push({ name: "odd", shape: [5], type: "f32", data: once(encodeValues(values.subarray(0, 5), "f32")) });
  await writeGguf(path, metadata, tensors);
  const read = await gguf(path, { allowLocalFile: true });
  const { metadata: found } = read as { metadata: Record<string, unknown> };
  assert.equal(found["version"], 3);
  assert.deepEqual(found["tokenizer.ggml.tokens"], words);
  assert.equal(found["llama.block_count"], 4_000_000_000);
  assert.equal(found["llama.rope.freq_base"], Math.fround(0.1));
  assert.equal(found["tokenizer.ggml.add_bos_token"], true);
  assert.deepEqual(found["tokenizer.ggml.scores"], [-1.5, 0]);
  assert.deepEqual(found["tokenizer.ggml.token_type"], [-3, 6]);
  assert.deepEqual(found["llama.pattern"], [true, false, true]);
  const bytes = readFileSync(path);
  const start = Number(read.tensorDataOffset);
  for (const [i, { name, shape, offset, dtype }] of read.tensorInfos.entries()) {
    const { type } = tensors[i]!;
    assert.equal(name, tensors[i]!.name);
    assert.deepEqual(shape.map(Number), [...tensors[i]!.shape].reverse());
    assert.equal(dtype, GGUF_TYPES[type].code);
    assert.equal((start + Number(offset)) % 32, 0);
    const count = tensors[i]!.shape.reduce((a, b) => a * b, 1);
    const own = bytes.subarray(start + Number(offset), start + Number(offset) + typeBytes(type, count));
    assert.deepEqual(Buffer.from(own), Buffer.from(encodeValues(values.subarray(0, count), type as RoundedType)));
  }
});

test("q8_0: each value is off by no more than half a step of its block", () => {
  fc.assert(
    fc.property(
      fc.array(fc.float({ noNaN: true, min: -1000, max: 1000 }), { minLength: 32, maxLength: 32 }),
      (block) => {
        const bytes = encodeValues(Float32Array.from(block), "q8_0");
        const half = new DataView(bytes.buffer).getUint16(0, true);
        const [exponent, fraction] = [(half >> 10) & 31, half & 1023];
        const scale = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
        const codes = new Int8Array(bytes.buffer, 2);
        for (const [i, value] of block.entries()) {
          // The scale itself is rounded to float16.
          const allowed = scale * 0.5 + Math.abs(value) * 2 ** -10 + 127 * 2 ** -25;
          assert.ok(Math.abs(codes[i]! * scale - value) <= allowed, `${value}: ${codes[i]} × ${scale}`);
        }
      },
    ),
  );
  assert.deepEqual(encodeValues(new Float32Array(64), "q8_0"), new Uint8Array(68));
  // Halves go away from zero.
  const halves = encodeValues(
    Float32Array.from({ length: 32 }, (_, i) => (i === 0 ? 127 : i % 2 ? 2.5 : -2.5)),
    "q8_0",
  );
  assert.deepEqual([...new Int8Array(halves.buffer, 2, 3)], [127, 3, -3]);
});

test("MXFP4: value i of a block is in a byte's low half, i + 16 in its high half", () => {
  const values = Array.from({ length: 32 }, (_, i) => (i * 7) % 16);
  const ocp = Uint8Array.from({ length: 16 }, (_, i) => values[2 * i]! | (values[2 * i + 1]! << 4));
  const [exponent, ...codes] = encodeMxfp4(ocp, Uint8Array.of(123));
  assert.equal(exponent, 123);
  for (const [i, code] of codes.entries()) {
    assert.equal(code & 15, values[i]);
    assert.equal(code >> 4, values[i + 16]);
  }
});

test("a tensor of too few bytes, a name twice: no file", async (t) => {
  const dir = temporaryFolder(t);
  const short: GgufTensor = { name: "a", shape: [4], type: "f32", data: once(new Uint8Array(12)) };
  await assert.rejects(writeGguf(join(dir, "short.gguf"), new Map(), [short]), { code: "PL_INTERNAL" });
  await assert.rejects(writeGguf(join(dir, "twice.gguf"), new Map(), [short, short]), { code: "PL_INTERNAL" });
  assert.throws(() => readFileSync(join(dir, "short.gguf")));
});
