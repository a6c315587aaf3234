import type { LogLine, LogPage } from "./wire.ts";

/** Lines that are kept; the file has all. */
const MOST_LINES = 5_000;
/** Longer lines are truncated. */
const MOST_CHARACTERS = 4_000;

/** The last lines of a run's log. */
export class RunLog {
  #lines: LogLine[] = [];
  #next = 0;

  /** Lines that there have been. */
  get count(): number {
    return this.#next;
  }

  add(line: Omit<LogLine, "seq">): void {
    const text = line.text.length > MOST_CHARACTERS ? `${line.text.slice(0, MOST_CHARACTERS)} …` : line.text;
    this.#lines.push({ ...line, text, seq: this.#next++ });
    if (this.#lines.length >= 2 * MOST_LINES) this.#lines = this.#lines.slice(-MOST_LINES);
  }

  /** The last `most` lines before number `before`. */
  page(before: number, most: number): LogPage {
    const lines = this.#lines.slice(-MOST_LINES);
    const first = lines[0]?.seq ?? 0;
    const end = Math.max(0, Math.min(lines.length, before - first));
    return { lines: lines.slice(Math.max(0, end - most), end), first };
  }
}
