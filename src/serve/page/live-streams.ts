import type { ServerResponse } from "node:http";
import type { RunSource } from "./run-source.ts";
import { summaryOf } from "./run-view.ts";
import type { Change, Cursor } from "./wire.ts";

/** Interval at which runs are read, once for all clients. */
const TICK_MS = 500;
/** An empty line: proxies and clients take a silent connection for a dead one. */
const ALIVE_MS = 15_000;
/** A client that lacks more rows than this asks for the series anew, merged into as many points as a picture has. */
const MOST_ROWS = 400;
/** A client with more unread bytes than this is dropped; it reconnects when it can. */
const MOST_BUFFERED_BYTES = 256 << 10;
const MOST_STREAMS = 256;

interface Listener {
  readonly run: RunSource;
  readonly out: ServerResponse;
  cursor: Cursor;
  /** The text sent last, so that nothing is sent twice. */
  told: string;
  saidAt: number;
}

/** Clients that follow runs by server-sent events. */
export class LiveStreams {
  readonly #listeners = new Set<Listener>();
  readonly #tickMs: number;
  readonly #mostBufferedBytes: number;
  #timer: NodeJS.Timeout | null = null;
  #ticking = false;

  constructor({ tickMs = TICK_MS, mostBufferedBytes = MOST_BUFFERED_BYTES } = {}) {
    this.#tickMs = tickMs;
    this.#mostBufferedBytes = mostBufferedBytes;
  }

  get full(): boolean {
    return this.#listeners.size >= MOST_STREAMS;
  }

  /** Takes over `out`: sends headers, what came after `cursor`, and everything new. */
  add(run: RunSource, out: ServerResponse, cursor: Cursor): void {
    const listener: Listener = { run, out, cursor, told: "", saidAt: performance.now() };
    this.#listeners.add(listener);
    out.on("close", () => this.#remove(listener));
    out.on("error", () => {});
    this.#timer ??= setInterval(() => void this.#tick(), this.#tickMs);
    void this.#tick();
  }

  /** For good. */
  end(): void {
    for (const { out } of this.#listeners) out.end();
    for (const listener of this.#listeners) this.#remove(listener);
  }

  async #tick(): Promise<void> {
    // A folder on a slow disk is not read again before the last read has ended.
    if (this.#ticking) return;
    this.#ticking = true;
    try {
      await Promise.allSettled([...new Set([...this.#listeners].map(({ run }) => run))].map((run) => run.refresh()));
      for (const listener of this.#listeners) this.#tellSafely(listener);
    } finally {
      this.#ticking = false;
    }
  }

  /** A failing listener must not end the training run. */
  #tellSafely(listener: Listener): void {
    try {
      this.#tell(listener);
    } catch (error) {
      listener.out.destroy(error as Error);
    }
  }

  #tell(listener: Listener): void {
    const { run, out, cursor } = listener;
    const { columns, revisions } = run.record;
    const now: Cursor = { generation: columns.generation, rows: columns.length };
    const summary = summaryOf(run, Date.now());
    const told = JSON.stringify([now, revisions, summary.status]);
    if (told === listener.told) {
      if (performance.now() - listener.saidAt > ALIVE_MS) this.#write(listener, ": \n\n");
      return;
    }
    const goesOn =
      now.generation === cursor.generation && now.rows - cursor.rows <= MOST_ROWS && now.rows >= cursor.rows;
    const change: Change = { summary, revisions, points: goesOn ? columns.since(cursor.rows) : null };
    listener.told = told;
    listener.cursor = now;
    this.#write(listener, `data: ${JSON.stringify(change)}\n\n`);
    if (out.writableLength > this.#mostBufferedBytes) out.destroy();
  }

  #write(listener: Listener, text: string): void {
    listener.saidAt = performance.now();
    listener.out.write(text);
  }

  #remove(listener: Listener): void {
    this.#listeners.delete(listener);
    if (this.#listeners.size > 0 || this.#timer === null) return;
    clearInterval(this.#timer);
    this.#timer = null;
  }
}
