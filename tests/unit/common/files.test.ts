import assert from "node:assert/strict";
import { existsSync, mkdtempSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { makeFolder } from "../../../src/common/files.ts";

const root = mkdtempSync(join(tmpdir(), "pipelora-files-"));
writeFileSync(join(root, "file"), "");

test("makes what is missing, again and by several at once", async () => {
  const path = join(root, "a", "b", "c");
  await Promise.all([makeFolder(path), makeFolder(path), makeFolder(join(path, "d"))]);
  await makeFolder(path);
  assert.ok(statSync(join(path, "d")).isDirectory());
});

test("a file in the way is an error", async () => {
  await assert.rejects(makeFolder(join(root, "file")), { code: "EEXIST" });
  await assert.rejects(makeFolder(join(root, "file", "below")), { code: "ENOTDIR" });
});

test("a folder that takes none is an error", { skip: !existsSync("/proc/self"), timeout: 10_000 }, async () => {
  await assert.rejects(makeFolder("/proc/pipelora"), { code: "ENOENT" });
  await assert.rejects(makeFolder("/proc/pipelora/below"), { code: "ENOENT" });
});
