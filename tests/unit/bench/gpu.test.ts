import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { benchGpu, GPU_ROWS } from "../../../bench/gpu.mjs";
import { isErrorCode } from "../../../src/common/errors.ts";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";

const folder = mkdtempSync(join(tmpdir(), "pipelora-bench-gpu-"));
after(() => rmSync(folder, { recursive: true }));

/** A program that says what cuda_step once said. */
function program(name: string, lines: readonly object[], status = 0): string {
  const path = join(folder, name);
  const text = lines.map((line) => `${JSON.stringify(line)}\n`).join("");
  writeFileSync(path, `#!/bin/sh\ncat <<'END'\n${text}END\nexit ${status}\n`);
  chmodSync(path, 0o755);
  return path;
}

async function bench(args: readonly string[]): Promise<Record<string, unknown>[]> {
  const rows: Record<string, unknown>[] = [];
  await benchGpu((row) => rows.push(row as Record<string, unknown>), args);
  return rows;
}

const coded = (code: string, text: RegExp) => (error: Error & { code?: string }) => {
  assert.ok(isErrorCode(code));
  assert.equal(error.code, code);
  assert.match(error.message, text);
  return true;
};

test("every row is one that the engine's own program times", () => {
  const source = readFileSync(join(PACKAGE_ROOT, "native", "bench", "cuda_step.cpp"), "utf8");
  for (const { row } of GPU_ROWS) assert.ok(source.includes(`"${row}"`), row);
});

test("a row stands beside its target and its peers", async () => {
  const measured = { workload: "8x384-on", base: "nf4", checkpointing: true, dropout: 0.1, tokens: 3072 };
  const line = { ...measured, step_ms: 240, tokens_per_s: 12800, share_of_limit: 0.715, peak_GiB: 7.4 };
  const [row] = await bench(["--rows", "8x384-on", "--program", program("good", [line])]);
  assert.equal(row!["step_ms"], 240);
  assert.equal(row!["target_tokens_per_s"], 13500);
  assert.equal(row!["meets"], false);
  assert.equal(row!["times_best_peer"], 1.31);
  const faster = { ...line, tokens_per_s: 13600 };
  assert.equal((await bench(["--rows", "8x384-on", "--program", program("fast", [faster])]))[0]!["meets"], true);
});

test("a failed row and a missing GPU end with the program's own code", async () => {
  const failed = { workload: "8x384-off", error: "PL_OUT_OF_MEMORY", message: "no room in the arena" };
  const failing = bench(["--rows", "8x384-off", "--program", program("failed", [failed], 1)]);
  await assert.rejects(failing, coded("PL_OUT_OF_MEMORY", /1 of 1 rows failed.*no room in the arena/));
  const none = { error: "PL_DEVICE_UNAVAILABLE", message: "a GPU is needed: no NVIDIA driver is loaded" };
  const without = bench(["--program", program("none", [none], 1)]);
  await assert.rejects(without, coded("PL_DEVICE_UNAVAILABLE", /no NVIDIA driver/));
  await assert.rejects(bench(["--program", program("silent", [], 7)]), coded("PL_ENGINE_FAILED", /status 7/));
});

test("what can't be run says what is needed", async () => {
  const missing = bench(["--program", join(folder, "nowhere")]);
  await assert.rejects(missing, coded("PL_ENGINE_UNAVAILABLE", /needs an NVIDIA GPU, and nvcc/));
  await assert.rejects(bench(["--rows", "8x385"]), coded("PL_CONFIG_INVALID", /"8x385"; there are tutorial-on/));
  await assert.rejects(bench(["--fast"]), coded("PL_CONFIG_INVALID", /--fast/));
});
