import { type FileHandle, open, stat } from "node:fs/promises";

const CHUNK_BYTES = 1 << 20;
/** A longer line is none of ours. */
const MOST_LINE_BYTES = 4 << 20;
/** The end of what was read last, which shows whether the file was written anew: each line has its own time or step. */
const REMEMBERED_BYTES = 512;

/** The lines of a file that another process appends to. */
export class LineTail {
  readonly #path: string;
  /** Up to where whole lines were told. */
  #offset = 0;
  #remembered: Buffer = Buffer.alloc(0);

  constructor(path: string) {
    this.#path = path;
  }

  /** Passes on every complete line that is new. False: the file no longer begins with what was read, and nothing was passed on. */
  async read(tell: (line: string) => void): Promise<boolean> {
    const found = await stat(this.#path).catch(() => null);
    // A pipe or a device would be waited for.
    if (found === null || !found.isFile()) return this.#offset === 0;
    if (found.size < this.#offset) return false;
    if (found.size === this.#offset && this.#offset === 0) return true;
    const file = await open(this.#path, "r").catch(() => null);
    if (file === null) return this.#offset === 0;
    try {
      if (!(await this.#isSame(file))) return false;
      await this.#readOn(file, tell);
      return true;
    } finally {
      await file.close();
    }
  }

  async #isSame(file: FileHandle): Promise<boolean> {
    const { length } = this.#remembered;
    if (length === 0) return true;
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, this.#offset - length);
    return bytesRead === length && buffer.equals(this.#remembered);
  }

  async #readOn(file: FileHandle, tell: (line: string) => void): Promise<void> {
    const chunk = Buffer.alloc(CHUNK_BYTES);
    let pending = Buffer.alloc(0);
    let skipping = false;
    for (let at = this.#offset; ; ) {
      const { bytesRead } = await file.read(chunk, 0, chunk.length, at);
      if (bytesRead === 0) return;
      at += bytesRead;
      pending = Buffer.concat([pending, chunk.subarray(0, bytesRead)]);
      let begin = 0;
      for (let end = pending.indexOf(10); end >= 0; end = pending.indexOf(10, begin)) {
        if (!skipping) tell(pending.toString("utf8", begin, end));
        skipping = false;
        begin = end + 1;
      }
      if (begin > 0) {
        this.#offset = at - (pending.length - begin);
        this.#remembered = Buffer.from(pending.subarray(Math.max(0, begin - REMEMBERED_BYTES), begin));
        pending = pending.subarray(begin);
      }
      if (pending.length > MOST_LINE_BYTES) {
        skipping = true;
        pending = Buffer.alloc(0);
      }
    }
  }
}
