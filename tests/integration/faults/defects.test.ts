import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { outcome, startCoordinator, startWorker, temporaryFolder } from "../../support/processes/cli.ts";
import { freePort } from "../../support/processes/ports.ts";
import { childrenOf, isAlive } from "../../support/processes/processes.ts";

const golden = goldenRun("qwen2-gqa-tied");
const long = { ...golden, args: { ...golden.args, num_train_epochs: 400 } };

/** A defect on demand: an exception, or a rejection, that nobody catches. */
const DEFECTS = {
  exception: "process.on('SIGUSR2',()=>{throw new Error('a defect')})",
  rejection: "process.on('SIGUSR2',()=>{Promise.reject(new Error('a defect'))})",
} as const;

for (const [kind, source] of Object.entries(DEFECTS)) {
  test(`an uncaught ${kind} in the coordinator is coded, and workers of other nodes are told to leave first`, async (t) => {
    const address = `127.0.0.1:${await freePort()}`;
    const worker = startWorker(["--coordinator", address, "--devices", "cpu", "--threads", "1"]);
    t.after(() => worker.kill("SIGKILL"));
    const left = outcome(worker);
    const flags = goldenFlags(long, join(temporaryFolder(t), "run"), "--listen", address, "--nnodes", "1");
    const child = startCoordinator(flags, {
      NODE_OPTIONS: `--import data:text/javascript,${encodeURIComponent(source)}`,
    });
    let hit = 0;
    const { code, stderr } = await outcome(child, (text) => {
      if (hit > 0 || !text.includes('"event":"step"')) return;
      hit = performance.now();
      child.kill("SIGUSR2");
    });
    assert.ok(hit > 0, stderr);
    assert.equal(code, 1, stderr);
    assert.equal(stderr.split('"code":"PL_INTERNAL"').length - 1 + stderr.split("PL_INTERNAL:").length - 1, 1, stderr);
    assert.match(stderr, /a defect/);
    const end = await left;
    assert.equal(end.code, 0, end.stderr);
    assert.ok(performance.now() - hit < 8_000, `${Math.round(performance.now() - hit)} ms`);
  });
}

test("an uncaught exception in the coordinator leaves no local worker", async (t) => {
  // Local workers get the same environment, and the signal goes to the coordinator alone.
  const flags = goldenFlags(long, join(temporaryFolder(t), "run"), "--workers", "2");
  const child = startCoordinator(flags, {
    NODE_OPTIONS: `--import data:text/javascript,${encodeURIComponent(DEFECTS.exception)}`,
  });
  let workers: number[] = [];
  const { code, stderr } = await outcome(child, (text) => {
    if (workers.length > 0 || !text.includes('"event":"step"')) return;
    workers = childrenOf(child.pid!);
    child.kill("SIGUSR2");
  });
  assert.equal(code, 1, stderr);
  assert.equal(workers.length, 2);
  for (const pid of workers) assert.ok(!isAlive(pid));
});
