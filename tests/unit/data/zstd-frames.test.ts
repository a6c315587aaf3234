import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { readBytes } from "../../../src/data/readers/bytes.ts";
import { ZstdFrames } from "../../../src/data/readers/zstd-frames.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const MOST = 128 * 2 ** 20;

interface FrameShape {
  /** Bytes of the content's size in a single-segment frame; null: a window's descriptor stands there. */
  readonly sizeBytes: 1 | 2 | 4 | 8 | null;
  readonly window: number;
  readonly checksum: boolean;
  readonly dictionaryBytes: 0 | 1 | 2 | 4;
  readonly blocks: readonly { readonly run: boolean; readonly length: number }[];
}

/** A frame of raw blocks and runs, as RFC 8878 writes it, and the window that it asks for. */
function frameOf({ sizeBytes, window, checksum, dictionaryBytes, blocks }: FrameShape) {
  const dictionaryFlag = { 0: 0, 1: 1, 2: 2, 4: 3 }[dictionaryBytes];
  const sizeFlag = sizeBytes === null ? 0 : { 1: 0, 2: 1, 4: 2, 8: 3 }[sizeBytes];
  const descriptor = (sizeFlag << 6) | (sizeBytes === null ? 0 : 32) | (checksum ? 4 : 0) | dictionaryFlag;
  const parts = [Buffer.from([0x28, 0xb5, 0x2f, 0xfd, descriptor])];
  let asked: number;
  if (sizeBytes === null) {
    const [exponent, mantissa] = [window % 32, Math.floor(window / 32) % 8];
    parts.push(Buffer.from([(exponent << 3) | mantissa]));
    asked = 2 ** (10 + exponent) * (1 + mantissa / 8);
  } else asked = sizeBytes === 1 ? window % 256 : sizeBytes === 2 ? (window % 65_536) + 256 : window;
  parts.push(Buffer.alloc(dictionaryBytes, 0xfd));
  if (sizeBytes !== null) {
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(BigInt(asked - (sizeBytes === 2 ? 256 : 0)));
    parts.push(size.subarray(0, sizeBytes));
  }
  for (const [index, { run, length }] of blocks.entries()) {
    const header = Buffer.alloc(3);
    header.writeUIntLE((index === blocks.length - 1 ? 1 : 0) | (run ? 2 : 0) | (length << 3), 0, 3);
    // What looks like a frame's magic in the content is none.
    parts.push(header, run ? Buffer.from([7]) : Buffer.alloc(length, Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0xe0])));
  }
  if (checksum) parts.push(Buffer.alloc(4, 0x28));
  return { bytes: Buffer.concat(parts), asked };
}

function skippable(length: number) {
  const head = Buffer.alloc(8);
  head.writeUInt32LE(0x184d2a50 + (length % 16));
  head.writeUInt32LE(length, 4);
  return { bytes: Buffer.concat([head, Buffer.alloc(length, 0x28)]), asked: 0 };
}

const frames = fc.record<FrameShape>({
  sizeBytes: fc.constantFrom(1, 2, 4, 8, null),
  window: fc.oneof(fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.constantFrom(MOST - 1, MOST, MOST + 1)),
  checksum: fc.boolean(),
  dictionaryBytes: fc.constantFrom(0, 1, 2, 4),
  blocks: fc.array(fc.record({ run: fc.boolean(), length: fc.nat(40) }), { minLength: 1, maxLength: 4 }),
});
const pieces = fc.oneof(frames.map(frameOf), fc.nat(40).map(skippable));

test("a window over 128 MiB is refused in whichever frame it stands, however the stream is cut", () => {
  let refused = 0;
  fc.assert(
    fc.property(fc.array(pieces, { minLength: 1, maxLength: 6 }), fc.integer({ min: 1, max: 50 }), (parts, cut) => {
      const stream = Buffer.concat(parts.map(({ bytes }) => bytes));
      const walked = new ZstdFrames();
      const walk = () => {
        for (let at = 0; at < stream.length; at += cut) walked.push(stream.subarray(at, at + cut));
      };
      const first = parts.find(({ asked }) => asked > MOST);
      if (first === undefined) return walk();
      refused += 1;
      assert.throws(walk, new RegExp(`a window of ${first.asked} bytes`));
    }),
    { numRuns: 2000 },
  );
  assert.ok(refused > 500 && refused < 2000);
});

test("a file of some bytes that asks for 2 GB costs neither time nor memory", async (t) => {
  const text = Buffer.from('{"text": "a"}\n');
  const good = Buffer.concat([
    Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x20, text.length, (text.length << 3) | 1, 0, 0]),
    text,
  ]);
  const { bytes: bad } = frameOf({
    ...{ sizeBytes: 8, window: 2_000_000_000, checksum: false, dictionaryBytes: 0 },
    blocks: [{ run: false, length: 10 }],
  });
  const path = join(temporaryFolder(t), "rows.jsonl.zst");
  for (const [content, whole] of [
    [good, true],
    [Buffer.concat([good, good]), true],
    [bad, false],
    [Buffer.concat([good, bad]), false],
  ] as const) {
    writeFileSync(path, content);
    const before = process.resourceUsage().maxRSS;
    const read = async () => {
      const all: Buffer[] = [];
      for await (const piece of readBytes(path)) all.push(piece);
      return Buffer.concat(all).toString();
    };
    if (whole) assert.equal((await read()).replaceAll(text.toString(), ""), "");
    else await assert.rejects(read, { code: "PL_DATASET_INVALID", message: /a window of 2000000000 bytes/ });
    assert.ok(process.resourceUsage().maxRSS - before < 200_000, "KiB more were resident");
  }
});
