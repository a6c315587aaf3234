/** The zstd program's own limit without --long or --memory. Unpacking a frame takes its window's bytes, however little the frame holds. */
const MAX_WINDOW_BYTES = 128 * 2 ** 20;
const FRAME = 0xfd2fb528;
const SKIPPABLE = 0x184d2a50;
const RUN_BLOCK = 1;

/** The next bytes to look at, or how many to skip. */
type Wanted = { readonly take: number } | { readonly skip: number };

/**
 * Reads the headers of Zstandard frames (RFC 8878) before they are unpacked, and refuses windows over 128 MiB. Anything else passes, for
 * the unpacker to refuse.
 */
export class ZstdFrames {
  readonly #walk = walk();
  #wanted: Wanted | null;
  /** Of what is wanted: bytes that have come. */
  #taken: number[] = [];
  #skipped = 0;

  constructor() {
    this.#wanted = this.#walk.next().value ?? null;
  }

  /** The stream's next bytes. Throws where a frame that begins in them asks for too large a window. */
  push(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length && this.#wanted !== null; ) {
      if ("skip" in this.#wanted) {
        const passed = Math.min(bytes.length - at, this.#wanted.skip - this.#skipped);
        this.#skipped += passed;
        at += passed;
        if (this.#skipped === this.#wanted.skip) this.#next();
      } else {
        this.#taken.push(bytes[at]!);
        at += 1;
        if (this.#taken.length === this.#wanted.take) this.#next();
      }
    }
  }

  #next(): void {
    const taken = Buffer.from(this.#taken);
    this.#taken = [];
    this.#skipped = 0;
    this.#wanted = this.#walk.next(taken).value ?? null;
  }
}

function* walk(): Generator<Wanted, undefined, Buffer> {
  for (;;) {
    const magic = (yield { take: 4 }).readUInt32LE();
    if (magic === FRAME) yield* frame();
    else if ((magic & ~15) >>> 0 === SKIPPABLE) yield* skip((yield { take: 4 }).readUInt32LE());
    else return undefined;
  }
}

function* frame(): Generator<Wanted, void, Buffer> {
  const descriptor = (yield { take: 1 })[0]!;
  const single = (descriptor & 32) !== 0;
  const window = single ? null : windowOf((yield { take: 1 })[0]!);
  yield* skip([0, 1, 2, 4][descriptor & 3]!);
  const sizeBytes = [single ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
  const size = sizeBytes === 0 ? 0 : contentSize(yield { take: sizeBytes });
  const bytes = window ?? size;
  if (bytes > MAX_WINDOW_BYTES) {
    throw new Error(`a frame asks for a window of ${bytes} bytes, expected at most ${MAX_WINDOW_BYTES}`);
  }
  for (let last = false; !last; ) {
    const header = (yield { take: 3 }).readUIntLE(0, 3);
    last = (header & 1) === 1;
    yield* skip(((header >> 1) & 3) === RUN_BLOCK ? 1 : header >> 3);
  }
  yield* skip((descriptor & 4) !== 0 ? 4 : 0);
}

function* skip(bytes: number): Generator<Wanted, void, Buffer> {
  if (bytes > 0) yield { skip: bytes };
}

function windowOf(descriptor: number): number {
  const base = 2 ** (10 + (descriptor >> 3));
  return base + (base / 8) * (descriptor & 7);
}

/** Two bytes count from 256. */
function contentSize(bytes: Buffer): number {
  if (bytes.length === 8) return Number(bytes.readBigUInt64LE());
  return bytes.readUIntLE(0, bytes.length) + (bytes.length === 2 ? 256 : 0);
}
