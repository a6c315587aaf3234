import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { cpSync, existsSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { createLogger } from "../../../src/common/log.ts";
import { loadConfig } from "../../../src/config/load.ts";
import { mergeAdapter } from "../../../src/coordinator/tools/merge.ts";
import { writeGgufModel } from "../../support/models/gguf-models.ts";
import { coordinator, outcome, startCoordinator, temporaryFolder } from "../../support/processes/cli.ts";

const LOG = createLogger({ format: "text", level: "silent", fields: {} });
/** Several shards of the small model. */
const SHARD = ["--max-shard-size", "200KB"];

function contents(dir: string): Record<string, string> {
  const files = readdirSync(dir).filter((name) => statSync(join(dir, name)).isFile());
  const digest = (name: string) =>
    createHash("sha256")
      .update(readFileSync(join(dir, name)))
      .digest("hex");
  return Object.fromEntries(files.sort().map((name) => [name, digest(name)]));
}

async function merge(model: string, adapter: string, output: string, yes: boolean) {
  const flags = { model, adapter, output_dir: output, max_shard_size: "200KB" };
  return mergeAdapter(await loadConfig("merge", flags), LOG, async () => yes);
}

test("a merge that is killed goes on with the shards that it wrote, to the same bytes", async (t) => {
  const root = temporaryFolder(t);
  const { model, adapter } = await writeGgufModel(root, "qwen3");
  const whole = join(root, "whole");
  await merge(model, adapter, whole, false);
  const shards = readdirSync(whole).filter((name) => name.endsWith(".safetensors"));
  assert.ok(shards.length > 3, String(shards));
  const output = join(root, "killed");
  const stage = join(output, ".staged");
  const child = startCoordinator(["merge", "--model", model, "--adapter", adapter, "--output-dir", output, ...SHARD]);
  const ended = outcome(child);
  // As soon as a shard is whole; a process that was quicker has ended, and the rest holds for it too.
  const watch = setInterval(() => {
    if (existsSync(stage) && readdirSync(stage).some((name) => name.endsWith(".safetensors"))) child.kill("SIGKILL");
  }, 1);
  await ended;
  clearInterval(watch);
  const before = existsSync(stage) ? readdirSync(stage).filter((name) => name.endsWith(".safetensors")) : [];
  const times = before.map((name) => statSync(join(stage, name)).mtimeMs);
  await merge(model, adapter, output, false);
  assert.deepEqual(contents(output), contents(whole));
  assert.deepEqual(
    before.map((name) => statSync(join(output, name)).mtimeMs),
    times,
  );
  assert.ok(!existsSync(stage));
});

test("shards that another merge left are not taken", async (t) => {
  const root = temporaryFolder(t);
  const { model, adapter } = await writeGgufModel(root, "qwen3");
  const [whole, output] = [join(root, "whole"), join(root, "output")];
  await merge(model, adapter, whole, false);
  const other = await writeGgufModel(join(root, "other"), "qwen3", { useRslora: true });
  await merge(other.model, other.adapter, output, false);
  // What a killed merge of the other adapter leaves.
  const stage = join(output, ".staged");
  cpSync(output, `${output}-left`, { recursive: true });
  renameSync(`${output}-left`, stage);
  writeFileSync(join(stage, "state.json"), JSON.stringify({ key: "another", placing: null }));
  await merge(model, adapter, output, false);
  assert.deepEqual(contents(output), contents(whole));
});

test("over its own base: refused unless somebody says yes; killed while files take their places, it ends what it began", async (t) => {
  const root = temporaryFolder(t);
  const { model, adapter } = await writeGgufModel(root, "llama");
  const whole = join(root, "whole");
  await merge(model, adapter, whole, false);
  const before = contents(model);
  const refused = await coordinator(["merge", "--model", model, "--adapter", adapter, "--output-dir", model, ...SHARD]);
  assert.notEqual(refused.code, 0);
  assert.match(refused.stderr, /PL_OUTPUT_UNWRITABLE.*--yes/s);
  assert.deepEqual(contents(model), before);

  const copy = join(root, "copy");
  cpSync(model, copy, { recursive: true });
  await merge(copy, adapter, copy, true);
  assert.deepEqual(contents(copy), contents(whole));
  assert.ok(!existsSync(join(copy, "model.safetensors")), "the base's one file is gone");
  await assert.rejects(merge(copy, adapter, join(root, "twice"), false), { code: "PL_ADAPTER_INVALID" });

  // As a kill between two renames leaves the folder: the base's file gone, some shards placed, others not.
  const torn = join(root, "torn");
  cpSync(model, torn, { recursive: true });
  const state = await interrupted(torn, adapter);
  for (const name of state.slice(0, 2)) renameSync(join(torn, ".staged", name), join(torn, name));
  rmSync(join(torn, "model.safetensors"));
  const { merged } = await merge(torn, adapter, torn, false);
  assert.equal(merged, null);
  assert.deepEqual(contents(torn), contents(whole));
});

/** Merges, and puts all files back to where they wait for their places. */
async function interrupted(dir: string, adapter: string): Promise<string[]> {
  const base = contents(dir);
  const spare = `${dir}-spare`;
  cpSync(dir, spare, { recursive: true });
  const { StagedFolder } = await import("../../../src/formats/staged-folder.ts");
  const place = StagedFolder.prototype.place;
  let files: string[] = [];
  StagedFolder.prototype.place = async function (removed, last) {
    files = [...(await this.written())].sort();
    const placing = {
      removed: removed.filter((name) => !files.includes(name)),
      files: [...files.filter((n) => !last.includes(n)), ...files.filter((n) => last.includes(n))],
    };
    const state = JSON.parse(readFileSync(join(this.stage, "state.json"), "utf8")) as object;
    writeFileSync(join(this.stage, "state.json"), JSON.stringify({ ...state, placing }));
    throw new Error("killed here");
  };
  try {
    await assert.rejects(merge(dir, adapter, dir, true), /killed here/);
  } finally {
    StagedFolder.prototype.place = place;
  }
  assert.deepEqual(contents(dir), base, "nothing of the base is touched before all is written");
  return files;
}
