import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, open, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { lock } from "proper-lockfile";
import { PipeloraError } from "../common/errors.ts";
import { makeFolder } from "../common/files.ts";
import type { RemoteFile } from "./remote.ts";
import { PassingFailure, pauseBefore, reasonOf, requestOnce } from "./requests.ts";
import type { HubSettings } from "./settings.ts";

/** A lock that was not refreshed for this long belongs to a process that has ended. */
const STALE_LOCK_MS = 10_000;
const LOCK_POLL_MS = 300;

/** What one file's download has to do with. */
export interface Transfer {
  readonly url: string;
  readonly settings: HubSettings;
  /** As messages name it. */
  readonly subject: string;
  /** Called with the length of each piece. */
  readonly received: (bytes: number) => void;
  /** Ends it. */
  readonly cancelled: AbortSignal;
}

/** The part of a blob that is there under its temporary name. */
export function incompleteOf(blob: string): string {
  return `${blob}.incomplete`;
}

/**
 * Fetches a file to `blob`. Continues what an earlier attempt left, checks the hash of the whole file, and only then gives it its name.
 * Of several processes that want one blob, one fetches it.
 * Errors: those of requests.ts, PL_HUB_DAMAGED, PL_OUTPUT_UNWRITABLE.
 */
export async function downloadBlob(file: RemoteFile, blob: string, transfer: Transfer): Promise<void> {
  const { settings, subject } = transfer;
  await makeFolder(dirname(blob)).catch((cause: Error) => {
    throw unwritable(blob, cause);
  });
  const release = await onlyOne(blob, transfer);
  if (release === null) return;
  try {
    // A part from an earlier attempt may have been written by another process, so the whole file is fetched once more before the hub is
    // blamed.
    if (await fetchOnce(file, blob, transfer)) return;
    if (await fetchOnce(file, blob, transfer)) return;
  } finally {
    await release();
  }
  const hash = file.hash.kind === "sha256" ? "SHA-256" : "git's SHA-1";
  throw new PipeloraError(
    "PL_HUB_DAMAGED",
    `${subject}: the file from ${settings.endpoint} has another ${hash} than the hub lists (${file.hash.hex})`,
    { hint: "A proxy or a mirror has changed it: nothing was kept. Try again, or another $HF_ENDPOINT." },
  );
}

/** null where another process has fetched the blob meanwhile. The wait ends with that process, or at its own deadlines. */
async function onlyOne(
  blob: string,
  { subject, settings, cancelled }: Transfer,
): Promise<(() => Promise<void>) | null> {
  let seen = -1;
  let still = performance.now();
  for (;;) {
    if ((await sizeOf(blob)) !== null) return null;
    try {
      const release = await lock(blob, {
        realpath: false,
        stale: STALE_LOCK_MS,
        lockfilePath: `${blob}.pipelora-lock`,
        // While a machine slept, another process may have taken over its lock. The hash shows whether their writes mixed.
        onCompromised: () => {},
      });
      return () => release().catch(() => {});
    } catch (error) {
      if ((error as { code?: string }).code !== "ELOCKED") throw unwritable(blob, error as Error);
    }
    const size = (await sizeOf(incompleteOf(blob))) ?? 0;
    if (size !== seen) still = performance.now();
    seen = size;
    const patience = settings.timeoutMs * (settings.attempts + 1) + STALE_LOCK_MS;
    if (performance.now() - still > patience) {
      throw new PipeloraError("PL_HUB_UNREACHABLE", `${subject}: another process is fetching it and gets no further`, {
        hint: `End that process, or delete ${blob}.pipelora-lock if there is none.`,
      });
    }
    await delay(LOCK_POLL_MS, undefined, { signal: cancelled });
  }
}

/** Whether the blob is there and correct; a wrong one is deleted. */
async function fetchOnce(file: RemoteFile, blob: string, transfer: Transfer): Promise<boolean> {
  const path = incompleteOf(blob);
  const partial = await Partial.open(path, file);
  try {
    for (let failures = 0; partial.size < file.size; ) {
      const before = partial.size;
      try {
        await fetchRest(partial, transfer);
      } catch (failure) {
        if (!(failure instanceof PassingFailure)) throw failure;
        failures = partial.size > before ? 1 : failures + 1;
        await pauseBefore(failures + 1, failure, transfer.settings, transfer.subject);
      }
    }
    const right = partial.size === file.size && partial.digest() === file.hash.hex;
    if (right) await partial.sync();
    await partial.close();
    if (right) await rename(path, blob);
    else await rm(path, { force: true });
    return right;
  } catch (error) {
    await partial.close();
    throw error;
  }
}

/** Appends what the server sends. Error: PassingFailure where it ends too soon. */
async function fetchRest(partial: Partial, { url, settings, subject, received, cancelled }: Transfer): Promise<void> {
  cancelled.throwIfAborted();
  const idle = new AbortController();
  const watch = () => setTimeout(() => idle.abort(), settings.timeoutMs);
  let timer = watch();
  try {
    const from = partial.size;
    // A compressed answer would have other offsets.
    const headers = { "accept-encoding": "identity", ...(from > 0 ? { range: `bytes=${from}-` } : {}) };
    const response = await requestOnce(url, settings, subject, headers, AbortSignal.any([idle.signal, cancelled]));
    const continued = response.status === 206 && startOf(response.headers.get("content-range")) === from;
    if (from > 0 && !continued) await partial.restart();
    if (response.status === 416) {
      await response.body?.cancel();
      throw new PassingFailure("the range that is missing was refused");
    }
    try {
      for await (const piece of response.body ?? []) {
        clearTimeout(timer);
        timer = watch();
        await partial.append(piece);
        received(piece.length);
      }
    } catch (cause) {
      if (cause instanceof PipeloraError) throw cause;
      throw new PassingFailure(reasonOf(cause, idle.signal, settings), null, cause);
    }
    if (partial.size < partial.expected) throw new PassingFailure(`cut off after ${partial.size} bytes`);
  } finally {
    clearTimeout(timer);
  }
}

/** "bytes 100-199/200" begins at 100. */
function startOf(contentRange: string | null): number | null {
  const found = /^bytes (\d+)-/.exec(contentRange ?? "");
  return found === null ? null : Number(found[1]);
}

/** A file under its temporary name, and the hash of what it holds. */
class Partial {
  readonly expected: number;
  readonly #path: string;
  readonly #handle: FileHandle;
  readonly #file: RemoteFile;
  #hash: Hash;
  #size: number;

  private constructor(path: string, handle: FileHandle, file: RemoteFile, size: number) {
    this.expected = file.size;
    this.#path = path;
    this.#handle = handle;
    this.#file = file;
    this.#size = size;
    this.#hash = freshHash(file);
  }

  static async open(path: string, file: RemoteFile): Promise<Partial> {
    const size = (await sizeOf(path)) ?? 0;
    const kept = size <= file.size ? size : 0;
    const handle = await open(path, kept > 0 ? "r+" : "w").catch((cause: Error) => {
      throw unwritable(path, cause);
    });
    const partial = new Partial(path, handle, file, kept);
    if (kept > 0) for await (const piece of createReadStream(path, { end: kept - 1 })) partial.#hash.update(piece);
    return partial;
  }

  get size(): number {
    return this.#size;
  }

  async append(piece: Uint8Array): Promise<void> {
    try {
      for (let at = 0; at < piece.length; ) {
        const { bytesWritten } = await this.#handle.write(piece, at, piece.length - at, this.#size + at);
        at += bytesWritten;
      }
    } catch (cause) {
      throw unwritable(this.#path, cause as Error);
    }
    this.#hash.update(piece);
    this.#size += piece.length;
    if (this.#size > this.expected) {
      throw new PassingFailure(`${this.#size} bytes came, more than the ${this.expected} that are listed`);
    }
  }

  async restart(): Promise<void> {
    await this.#handle.truncate(0);
    this.#size = 0;
    this.#hash = freshHash(this.#file);
  }

  digest(): string {
    return this.#hash.digest("hex");
  }

  async sync(): Promise<void> {
    await this.#handle.sync();
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}

function freshHash({ hash, size }: RemoteFile): Hash {
  return hash.kind === "sha256" ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
}

async function sizeOf(path: string): Promise<number | null> {
  return stat(path).then(
    ({ size }) => size,
    () => null,
  );
}

function unwritable(path: string, cause: Error): PipeloraError {
  return new PipeloraError("PL_OUTPUT_UNWRITABLE", `${path} can't be written: ${cause.message}`, {
    hint: "Check rights and space there, or name another cache with HF_HOME.",
    cause,
  });
}
