import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { ATTACKS } from "../../support/processes/attacks.ts";
import {
  coordinator,
  events,
  outcome,
  startCoordinator,
  startWorker,
  temporaryFolder,
} from "../../support/processes/cli.ts";
import { freePort } from "../../support/processes/ports.ts";

const golden = goldenRun("qwen2-gqa-tied");
const long = { ...golden, args: { ...golden.args, num_train_epochs: 1000, save_steps: 100_000, logging_steps: 50 } };
const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

/** Peak resident memory of a process that lives, in MiB. */
function peakMiB(pid: number): number {
  return Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) / 1024;
}

test("twenty attacks on a coordinator without a token: the run goes on to the undisturbed bits", async (t) => {
  assert.ok(Object.keys(ATTACKS).length >= 20);
  const root = temporaryFolder(t);
  const port = await freePort();
  const output = join(root, "run");
  const flags = ["--listen", `127.0.0.1:${port}`, "--nodes", "n1,n2", "--log-level", "warn"];
  const run = startCoordinator(goldenFlags(long, output, ...flags));
  let attacking: Promise<{ names: string[]; peak: number }> | null = null;
  let over = false;
  const attack = async () => {
    const before = peakMiB(run.pid!);
    const names: string[] = [];
    const waiting = Object.entries(ATTACKS);
    // A few at a time: one after the other they outlast the run, and of many at once the log would name only some reasons.
    const one = async () => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
        await next[1](port);
        if (!over) names.push(next[0]);
      }
    };
    await Promise.all([one(), one(), one(), one()]);
    return { names, peak: over ? Number.NaN : peakMiB(run.pid!) - before };
  };
  const running = outcome(run, (text) => {
    if (text.includes('"event":"log"')) attacking ??= attack();
  }).then((ended) => {
    over = true;
    return ended;
  });
  const joins = (name: string) =>
    outcome(
      startWorker(["--coordinator", `127.0.0.1:${port}`, "--devices", "cpu", "--threads", "1", "--node-name", name]),
    );
  const workers = [joins("n1"), joins("n2")];
  const { code, stdout, stderr } = await running;
  assert.equal(code, 0, stderr);
  const { names, peak } = await attacking!;
  assert.deepEqual(names.sort(), Object.keys(ATTACKS).sort(), "the run was over before the attacks were");
  assert.ok(peak < 300, `the coordinator's memory grew by ${peak} MiB`);
  for (const worker of workers) assert.equal((await worker).code, 0);
  assert.equal(events(stdout, "note").filter(({ text }) => String(text).includes("resumed")).length, 0);
  assert.doesNotMatch(stderr, /was lost: it has been silent|going on from/);
  assert.match(stderr, /its messages are compressed/);
  assert.match(stderr, /asked for nothing within 10 s/);
  assert.match(stderr, /bytes without saying who it is/);
  assert.ok(stderr.split("\n").filter((line) => line.includes("refused")).length < 100, "refusals fill the log");
  assert.equal((await coordinator(goldenFlags(long, join(root, "calm"), "--workers", "2"))).code, 0);
  assert.deepEqual(adapter(output), adapter(join(root, "calm")));
});
