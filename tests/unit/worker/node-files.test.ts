import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { OutputFolders } from "../../../src/worker/node/node-files.ts";

const save = (name: string, text: string) => ({ save: "final", name, offset: 0, data: Buffer.from(text) });

test("each adapter's files arrive in its own folder, also while another's are on their way", async (t) => {
  const root = mkdtempSync(join(tmpdir(), "node-files-"));
  t.after(() => rmSync(root, { recursive: true }));
  const folders = new OutputFolders(join(root, "own"));
  const mark = { action: "mark", dir: join(root, "coordinator"), mark: ".m", marks: [] };
  for (const adapter of ["a", "b.2", ""]) {
    const { dir } = await folders.of({ adapter }).folder({ ...mark, adapter });
    assert.equal(dir, join(root, "own", adapter));
    await folders.of({ adapter }).folder({ ...mark, action: "unmark", adapter });
  }
  await folders.of({ adapter: "a" }).write({ ...save("f", "of a"), adapter: "a" });
  await folders.of({ adapter: "b.2" }).write({ ...save("f", "of b"), adapter: "b.2" });
  const commit = (adapter: string, sha256: string) =>
    folders.of({ adapter }).commit({ save: "final", files: [{ name: "f", sha256, size: 4 }], dropped: [], adapter });
  const hashOf = (text: string) => createHash("sha256").update(text).digest("hex");
  await assert.rejects(commit("a", hashOf("of b")), /hashes to/);
  assert.deepEqual(readdirSync(join(root, "own", "a")), []);
  await commit("b.2", hashOf("of b"));
  assert.equal(readFileSync(join(root, "own", "b.2", "f"), "utf8"), "of b");
});

test("what is no adapter's name is no folder", () => {
  const folders = new OutputFolders(null);
  for (const adapter of ["..", "../a", "a/b", ".hidden", "-x", "a\0", "x".repeat(121)]) {
    assert.throws(() => folders.of({ adapter }), { code: "PL_PROTOCOL_MISMATCH" }, adapter);
  }
  assert.equal(folders.of({ adapter: "a" }), folders.of({ adapter: "a" }));
});
