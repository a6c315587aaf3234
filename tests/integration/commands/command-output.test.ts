import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { goldenRun } from "../../support/models/golden.ts";
import { coordinator, temporaryFolder } from "../../support/processes/cli.ts";

const model = join(goldenRun("qwen1").folder, "model");

function rowsFile(folder: string, rows: number): string {
  const path = join(folder, "rows.jsonl");
  const row = JSON.stringify({ input_ids: Array.from({ length: 300 }, (_, index) => index) });
  writeFileSync(path, `${row}\n`.repeat(rows));
  return path;
}

test("output of any size comes whole through a pipe", async (t) => {
  const rows = rowsFile(temporaryFolder(t), 2000);
  const { code, stdout } = await coordinator(["tokenize", "--model", model, "--input", rows]);
  assert.equal(code, 0);
  const lines = stdout.trimEnd().split("\n");
  assert.equal(lines.length, 2000);
  for (const line of lines) assert.equal((JSON.parse(line) as { ids: number[] }).ids.length, 300);
});

test("a reader that goes away ends the program quietly", async (t) => {
  const rows = rowsFile(temporaryFolder(t), 5000);
  const program = join(PACKAGE_ROOT, "dist", "cli", "coordinator.js");
  const child = spawn("sh", [
    "-c",
    '"$0" "$1" tokenize --model "$2" --input "$3" | head -1 | wc -l',
    process.execPath,
    program,
    model,
    rows,
  ]);
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  await new Promise((resolve) => child.on("close", resolve));
  assert.equal(stdout.trim(), "1");
  assert.equal(stderr, "");
});
