import { type FileHandle, open } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { PipeloraError } from "../common/errors.ts";
import { makeFolder } from "../common/files.ts";

/** CRC-32C (Castagnoli), reflected, as TFRecord frames use it. */
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});

export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 0xff]!;
  return ~crc >>> 0;
}

/** TFRecord stores checksums rotated and offset, so that a checksum of a checksum is no special value. */
function maskedCrc(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

function record(data: Buffer): Buffer {
  const frame = Buffer.alloc(12 + data.length + 4);
  frame.writeBigUInt64LE(BigInt(data.length), 0);
  frame.writeUInt32LE(maskedCrc(frame.subarray(0, 8)), 8);
  data.copy(frame, 12);
  frame.writeUInt32LE(maskedCrc(data), 12 + data.length);
  return frame;
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) bytes.push((rest % 0x80) | 0x80);
  return Buffer.from([...bytes, rest]);
}

/** A length-delimited protobuf field. */
function field(number: number, content: Buffer): Buffer {
  return Buffer.concat([varint(number * 8 + 2), varint(content.length), content]);
}

function doubleField(number: number, value: number): Buffer {
  const bytes = Buffer.alloc(9, number * 8 + 1);
  bytes.writeDoubleLE(value, 1);
  return bytes;
}

function floatField(number: number, value: number): Buffer {
  const bytes = Buffer.alloc(5, number * 8 + 5);
  bytes.writeFloatLE(value, 1);
  return bytes;
}

/** tensorflow.Event: wall_time = 1, step = 2, file_version = 3, summary = 5; Summary.Value: tag = 1, simple_value = 2. */
function scalarEvent(wallTime: number, step: number, scalars: Readonly<Record<string, number>>): Buffer {
  const values = Object.entries(scalars).map(([tag, value]) =>
    field(1, Buffer.concat([field(1, Buffer.from(tag)), floatField(2, value)])),
  );
  return Buffer.concat([doubleField(1, wallTime), varint(16), varint(step), field(5, Buffer.concat(values))]);
}

/** Of a Value: tensor = 8 (dtype = 1, of strings 7; shape = 2; string_val = 8), metadata = 9 (plugin_data = 1, plugin_name = 1). */
function textEvent(wallTime: number, step: number, texts: Readonly<Record<string, string>>): Buffer {
  const one = field(2, Buffer.from([8, 1]));
  const metadata = field(9, field(1, field(1, Buffer.from("text"))));
  const values = Object.entries(texts).map(([tag, text]) => {
    const tensor = Buffer.concat([varint(8), varint(7), field(2, one), field(8, Buffer.from(text))]);
    return field(1, Buffer.concat([field(1, Buffer.from(tag)), field(8, tensor), metadata]));
  });
  return Buffer.concat([doubleField(1, wallTime), varint(16), varint(step), field(5, Buffer.concat(values))]);
}

/** A TensorBoard event file of scalars and texts. */
export class EventFile {
  readonly path: string;
  readonly #file: FileHandle;

  private constructor(path: string, file: FileHandle) {
    this.path = path;
    this.#file = file;
  }

  /** Creates `<dir>/events.out.tfevents.…`. Error: PL_OUTPUT_UNWRITABLE. */
  static async create(dir: string, now: Date = new Date()): Promise<EventFile> {
    const seconds = now.getTime() / 1000;
    const path = join(dir, `events.out.tfevents.${Math.floor(seconds)}.${hostname()}.${process.pid}.0`);
    try {
      await makeFolder(dir);
      const events = new EventFile(path, await open(path, "a"));
      const version = field(3, Buffer.from("brain.Event:2"));
      await events.#file.write(record(Buffer.concat([doubleField(1, seconds), version])));
      return events;
    } catch (error) {
      throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `${path} can't be written: ${(error as Error).message}`, {
        hint: "Check that the folder may be written.",
        cause: error,
      });
    }
  }

  /** Appends one point of each curve; in the file once the promise resolves. */
  async scalars(step: number, values: Readonly<Record<string, number>>, now: Date = new Date()): Promise<void> {
    await this.#file.write(record(scalarEvent(now.getTime() / 1000, step, values)));
  }

  /** Appends texts in Markdown, as the text plugin shows them. */
  async texts(step: number, texts: Readonly<Record<string, string>>, now: Date = new Date()): Promise<void> {
    await this.#file.write(record(textEvent(now.getTime() / 1000, step, texts)));
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}
