import type { Logger } from "../common/log.ts";

/** Hears how far a download has come. */
export interface Progress {
  /** Bytes that came over the network. */
  add(bytes: number): void;
  end(): void;
}

/** Makes the reporter of one download: what is fetched, its bytes, and how many of them an earlier try has left. */
export type ProgressMaker = (what: string, total: number, before: number) => Progress;

const BAR_CELLS = 24;
const BAR_MS = 100;
const LINE_MS = 10_000;

/** A bar in the last line of a terminal; elsewhere a line in the log at the beginning, every ten seconds and at the end. */
export function downloadProgress(log: Logger, out: NodeJS.WriteStream = process.stderr): ProgressMaker {
  const terminal = out.isTTY === true && log.isLevelEnabled("info");
  return (what, total, before) => {
    const state = { done: before, started: performance.now(), shown: 0, before };
    const text = () => describe(what, total, state);
    if (!terminal) log.info(`fetching ${text()}`);
    const show = (last: boolean) => {
      const now = performance.now();
      if (!last && now - state.shown < (terminal ? BAR_MS : LINE_MS)) return;
      if (state.shown === 0 && !last && !terminal) {
        state.shown = now;
        return;
      }
      state.shown = now;
      if (!terminal) log.info(`${last ? "fetched" : "fetching"} ${text()}`);
      else
        out.write(
          `\r\x1b[K${bar(state.done / total)} ${text()}`.slice(0, (out.columns || 100) + 3) + (last ? "\n" : ""),
        );
    };
    return {
      add(bytes) {
        state.done += bytes;
        show(false);
      },
      end: () => show(true),
    };
  };
}

function describe(
  what: string,
  total: number,
  { done, started, before }: { done: number; started: number; before: number },
): string {
  const seconds = (performance.now() - started) / 1000;
  const speed = seconds > 0.5 ? `, ${size((done - before) / seconds)}/s` : "";
  return `${what}: ${size(done)} of ${size(total)}${speed}`;
}

function bar(share: number): string {
  const full = Math.min(BAR_CELLS, Math.floor((Number.isNaN(share) ? 1 : share) * BAR_CELLS));
  return `[${"#".repeat(full)}${".".repeat(BAR_CELLS - full)}]`;
}

/** Decimal units, as the hubs show them. */
function size(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`;
}
