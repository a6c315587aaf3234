import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import {
  CheckpointStore,
  checkHashes,
  writeHashes,
} from "../../../../src/coordinator/run/checkpoints/checkpoint-store.ts";
import { listCheckpoints } from "../../../../src/formats/checkpoint-folders.ts";
import { temporaryFolder } from "../../../support/processes/cli.ts";

function checkpoint(root: string, step: number): string {
  const dir = join(root, `checkpoint-${step}`);
  mkdirSync(dir);
  writeFileSync(join(dir, "trainer_state.json"), `{"global_step": ${step}}`);
  return dir;
}

test("rotation goes by the order of saving and leaves another run's checkpoints alone", async (t) => {
  const root = temporaryFolder(t);
  checkpoint(root, 120);
  const store = new CheckpointStore(root, 2);
  for (const step of [10, 20, 30]) await store.saved(checkpoint(root, step));
  assert.deepEqual(readdirSync(root).sort(), ["checkpoint-120", "checkpoint-20", "checkpoint-30"]);
  assert.deepEqual(store.newestFirst, [join(root, "checkpoint-30"), join(root, "checkpoint-20")]);
});

test("another run's checkpoints are set aside under names that nothing resumes, and stay", async (t) => {
  const root = temporaryFolder(t);
  for (const round of [1, 2]) {
    for (const step of [50, 120]) checkpoint(root, step);
    const store = new CheckpointStore(root, null);
    if (round === 2) store.adopt([join(root, "checkpoint-50")]);
    await store.setAsideOthers();
  }
  assert.deepEqual(readdirSync(root).sort(), [
    "checkpoint-120.earlier",
    "checkpoint-120.earlier-2",
    "checkpoint-50",
    "checkpoint-50.earlier",
  ]);
  assert.deepEqual(
    (await listCheckpoints(root)).map(({ step }) => step),
    [50],
  );
});

test("a byte that changed behind the save is noticed, in any file", async (t) => {
  const dir = checkpoint(temporaryFolder(t), 5);
  writeFileSync(join(dir, "optimizer.safetensors"), Buffer.alloc(4096, 7));
  await writeHashes(dir);
  await checkHashes(dir);
  const bytes = readFileSync(join(dir, "optimizer.safetensors"));
  bytes[4000]! ^= 1;
  writeFileSync(join(dir, "optimizer.safetensors"), bytes);
  await assert.rejects(checkHashes(dir), /optimizer\.safetensors has changed since it was saved/);
});

test("what a killed save left is cleared, and nothing else", async (t) => {
  const root = temporaryFolder(t);
  const leftovers = [
    ".checkpoint-5-0a1b2c3d",
    ".pipelora-mark-0a1b2c3d4e5f-coordinator",
    "trainer_state.json.12.0.tmp",
    "last-step.json.12.1.tmp",
  ];
  const others = ["checkpoint-5", "notes.tmp", ".checkpoint-notes"];
  for (const name of [...leftovers, ...others]) writeFileSync(join(root, name), "");
  await new CheckpointStore(root, null).clear();
  for (const name of leftovers) assert.ok(!existsSync(join(root, name)), name);
  for (const name of others) assert.ok(existsSync(join(root, name)), name);
});
