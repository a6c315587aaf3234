import assert from "node:assert/strict";
import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import protobuf from "protobufjs";
import { Philox } from "../../../src/common/philox.ts";
import { crc32c, EventFile } from "../../../src/formats/tensorboard.ts";

describe("TensorBoard event files", () => {
  test("CRC-32C of the standard's check string", () => {
    assert.equal(crc32c(Buffer.from("123456789")), 0xe3069283);
  });

  test("records carry masked checksums and the scalars given", async () => {
    const dir = await mkdtemp(join(tmpdir(), "pipelora-events-"));
    const events = await EventFile.create(dir, new Date(1_700_000_000_500));
    await events.scalars(300, { "train/loss": 1.25 }, new Date(1_700_000_001_000));
    await events.close();
    const bytes = await readFile(events.path);
    const records: Buffer[] = [];
    for (let at = 0; at < bytes.length; ) {
      const length = Number(bytes.readBigUInt64LE(at));
      const unmask = (masked: number) => {
        const rotated = (masked - 0xa282ead8) >>> 0;
        return ((rotated >>> 17) | (rotated << 15)) >>> 0;
      };
      assert.equal(unmask(bytes.readUInt32LE(at + 8)), crc32c(bytes.subarray(at, at + 8)));
      const data = bytes.subarray(at + 12, at + 12 + length);
      assert.equal(unmask(bytes.readUInt32LE(at + 12 + length)), crc32c(data));
      records.push(data);
      at += 16 + length;
    }
    assert.equal(records.length, 2);
    assert.equal(records[0]!.toString("latin1", 11), "brain.Event:2");
    const [, event] = records;
    assert.equal(event!.readDoubleLE(1), 1_700_000_001);
    assert.deepEqual([...event!.subarray(9, 14)], [0x10, 0xac, 0x02, 0x2a, 19]);
    assert.deepEqual([...event!.subarray(14, 18)], [0x0a, 17, 0x0a, 10]);
    assert.equal(event!.toString("latin1", 18, 28), "train/loss");
    assert.equal(event!.readFloatLE(29), 1.25);
  });

  test("texts are read back by TensorFlow's own messages", async () => {
    // tensorflow/core/util/event.proto, framework/summary.proto, tensor.proto, tensor_shape.proto: the fields that texts need.
    const { root } = protobuf.parse(`syntax = "proto3";
      message Event { double wall_time = 1; int64 step = 2; Summary summary = 5; }
      message Summary { repeated Value value = 1; }
      message Value { string tag = 1; Tensor tensor = 8; Metadata metadata = 9; }
      message Metadata { PluginData plugin_data = 1; }
      message PluginData { string plugin_name = 1; }
      message Tensor { int32 dtype = 1; Shape tensor_shape = 2; repeated bytes string_val = 8; }
      message Shape { repeated Dim dim = 2; }
      message Dim { int64 size = 1; }`);
    const dir = await mkdtemp(join(tmpdir(), "pipelora-events-"));
    const events = await EventFile.create(dir);
    const texts = { "samples/0": "> Who?\n\n    甄嬛", "samples/1": "x".repeat(300) };
    await events.texts(70_000, texts, new Date(2_000));
    await events.close();
    const bytes = await readFile(events.path);
    const first = 16 + Number(bytes.readBigUInt64LE(0));
    const event = root
      .lookupType("Event")
      .toObject(root.lookupType("Event").decode(bytes.subarray(first + 12, -4)), { longs: Number });
    const value = ([tag, text]: [string, string]) => ({
      ...{ tag, metadata: { pluginData: { pluginName: "text" } } },
      tensor: { dtype: 7, tensorShape: { dim: [{ size: 1 }] }, stringVal: [Buffer.from(text)] },
    });
    assert.deepEqual(event, { wallTime: 2, step: 70_000, summary: { value: Object.entries(texts).map(value) } });
  });

  test("a folder that can't be made", async () => {
    const file = join(await mkdtemp(join(tmpdir(), "pipelora-events-")), "file");
    await writeFile(file, "");
    await assert.rejects(EventFile.create(file), { code: "PL_OUTPUT_UNWRITABLE" });
  });
});

describe("Philox4x32-10", () => {
  test("known answers of the paper's implementation", () => {
    const words = new Uint32Array(4);
    const hex = () => [...words].map((word) => word.toString(16).padStart(8, "0")).join(" ");
    new Philox(0, 0).block(0, 0, 0, 0, words);
    assert.equal(hex(), "6627e8d5 e169c58d bc57ac4c 9b00dbd8");
    new Philox(0xffffffff, 0xffffffff).block(0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, words);
    assert.equal(hex(), "408f276d 41c83b0e a20bc7c6 6d5451fd");
    new Philox(0xa4093822, 0x299f31d0).block(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, words);
    assert.equal(hex(), "d16cfe09 94fdcceb 5001e420 24126ea1");
  });
});
