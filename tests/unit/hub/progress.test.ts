import assert from "node:assert/strict";
import { test } from "node:test";
import type { Logger } from "../../../src/common/log.ts";
import { downloadProgress } from "../../../src/hub/progress.ts";

function shown(
  terminal: boolean,
  level: "info" | "silent" = "info",
): { lines: string[]; written: string[]; run(): void } {
  const lines: string[] = [];
  const written: string[] = [];
  const log = { info: (text: string) => level === "info" && lines.push(text), isLevelEnabled: () => level === "info" };
  const out = { isTTY: terminal, columns: 70, write: (text: string) => written.push(text) };
  const maker = downloadProgress(log as unknown as Logger, out as unknown as NodeJS.WriteStream);
  return {
    lines,
    written,
    run() {
      const progress = maker("o/n 2 files", 4_000_000, 1_000_000);
      progress.add(1_000_000);
      progress.add(2_000_000);
      progress.end();
    },
  };
}

test("a terminal has one line that is drawn over, within its width, and is ended", () => {
  const { lines, written, run } = shown(true);
  run();
  assert.deepEqual(lines, []);
  assert.ok(written.length >= 1);
  assert.ok(written.every((text) => text.startsWith("\r\x1b[K") && text.trimEnd().length <= 74));
  assert.match(written.at(-1)!, /\[#{24}\] o\/n 2 files: 4\.0 MB of 4\.0 MB.*\n$/);
});

test("elsewhere there are lines: what an earlier try has left, and the end", () => {
  const { lines, written, run } = shown(false);
  run();
  assert.deepEqual(written, []);
  assert.deepEqual(lines, ["fetching o/n 2 files: 1.0 MB of 4.0 MB", "fetched o/n 2 files: 4.0 MB of 4.0 MB"]);
});

test("nothing is drawn on a terminal where the log is silent", () => {
  const { lines, written, run } = shown(true, "silent");
  run();
  assert.deepEqual([lines, written], [[], []]);
});
