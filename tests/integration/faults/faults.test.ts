import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { coordinator, outcome, startCoordinator, temporaryFolder } from "../../support/processes/cli.ts";
import { childrenOf, isAlive } from "../../support/processes/processes.ts";

const golden = goldenRun("qwen2-gqa-tied");
const long = { ...golden, args: { ...golden.args, num_train_epochs: 40, save_steps: 5 } };
const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

for (const signal of ["SIGKILL", "SIGSTOP"] as const) {
  test(`a worker that is gone (${signal}) costs steps, not the run: the same bits at the end`, async (t) => {
    const root = temporaryFolder(t);
    assert.equal((await coordinator(goldenFlags(long, join(root, "calm"), "--workers", "2"))).code, 0);
    const output = join(root, "disturbed");
    const child = startCoordinator(goldenFlags(long, output, "--workers", "2"));
    let hit = false;
    const { code, stderr } = await outcome(child, (text) => {
      if (hit || !text.includes('"step":12,')) return;
      hit = true;
      process.kill(childrenOf(child.pid!).at(-1)!, signal);
    });
    assert.equal(code, 0, stderr);
    assert.match(stderr, /was lost.*going on from the last checkpoint/s);
    assert.deepEqual(adapter(output), adapter(join(root, "calm")));
  });
}

test("without restarts a lost worker ends the run with its name; nothing stays", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const child = startCoordinator(goldenFlags(long, output, "--workers", "2", "--max-restarts", "0"));
  let workers: number[] = [];
  const { code, stderr } = await outcome(child, (text) => {
    if (workers.length > 0 || !text.includes('"event":"log"')) return;
    workers = childrenOf(child.pid!);
    process.kill(workers[0]!, "SIGKILL");
  });
  assert.equal(code, 75);
  assert.match(stderr, /PL_WORKER_LOST.*rank 0|PL_WORKER_LOST.*local worker 0/);
  assert.equal(workers.length, 2);
  for (const pid of workers) assert.ok(!isAlive(pid));
});

test("workers leave when their coordinator is killed", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const child = startCoordinator(goldenFlags(long, output, "--workers", "3"));
  let workers: number[] = [];
  await outcome(child, (text) => {
    if (workers.length > 0 || !text.includes('"event":"log"')) return;
    workers = childrenOf(child.pid!);
    child.kill("SIGKILL");
  });
  assert.equal(workers.length, 3);
  const deadline = Date.now() + 10_000;
  while (workers.some(isAlive) && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 100));
  assert.deepEqual(workers.filter(isAlive), []);
});
