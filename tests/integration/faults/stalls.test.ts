import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { events, outcome, startCoordinator, temporaryFolder } from "../../support/processes/cli.ts";
import { childrenOf, isAlive } from "../../support/processes/processes.ts";

const golden = goldenRun("qwen1-shuffled");
const long = { ...golden, args: { ...golden.args, num_train_epochs: 40 } };
const program = [process.execPath, join(PACKAGE_ROOT, "dist", "cli", "coordinator.js")] as const;
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function allGone(pids: readonly number[], withinMs: number): Promise<number[]> {
  const deadline = Date.now() + withinMs;
  while (pids.some(isAlive) && Date.now() < deadline) await sleep(50);
  return pids.filter(isAlive);
}

test("a coordinator that stood still for 12 s loses no worker", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const child = startCoordinator(goldenFlags(long, output, "--workers", "2"));
  let stopped = false;
  const { code, stdout, stderr } = await outcome(child, (text) => {
    if (stopped || !text.includes('"step":3,')) return;
    stopped = true;
    child.kill("SIGSTOP");
    setTimeout(() => child.kill("SIGCONT"), 12_000);
  });
  assert.equal(code, 0, stderr);
  assert.ok(stopped);
  assert.doesNotMatch(stderr, /lost|restart/);
  assert.equal(events(stdout, "end").length, 1);
});

test("two workers train on the one core that the process may use", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const child = spawn("taskset", ["-c", "1", ...program, ...goldenFlags(golden, output, "--workers", "2")], {
    stdio: ["pipe", "pipe", "pipe"],
  });
  const { code, stderr } = await outcome(child);
  assert.equal(code, 0, stderr);
});

test("local workers that still start leave when their coordinator is killed", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const child = startCoordinator(goldenFlags(long, output, "--workers", "2"));
  const closed = once(child, "close");
  const deadline = Date.now() + 30_000;
  let workers: number[] = [];
  while (workers.length < 2 && Date.now() < deadline) {
    await sleep(5);
    workers = childrenOf(child.pid!);
  }
  child.kill("SIGKILL");
  assert.equal(workers.length, 2);
  assert.deepEqual(await allGone(workers, 10_000), []);
  await closed;
});

test("a reader that goes away takes its output with it, not the run", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const child = startCoordinator(goldenFlags(long, output, "--workers", "1"));
  let stderr = "";
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  child.stdout.once("data", () => child.stdout.destroy());
  const [code] = (await once(child, "exit")) as [number | null];
  assert.equal(code, 0, stderr);
  assert.ok(existsSync(join(output, "adapter_model.safetensors")));
  assert.equal(
    (JSON.parse(readFileSync(join(output, "trainer_state.json"), "utf8")) as { global_step: number }).global_step,
    120,
  );
});

test("without a terminal a hangup is no request to stop", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const child = startCoordinator(goldenFlags(long, output, "--workers", "1"));
  let hung = false;
  const { code, stderr } = await outcome(child, (text) => {
    if (hung || !text.includes('"step":3,')) return;
    hung = true;
    for (const pid of [child.pid!, ...childrenOf(child.pid!)]) process.kill(pid, "SIGHUP");
  });
  assert.ok(hung);
  assert.equal(code, 0, stderr);
});
