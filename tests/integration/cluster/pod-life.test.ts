import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import {
  coordinator,
  events,
  type Outcome,
  outcome,
  startCoordinator,
  startWorker,
  temporaryFolder,
} from "../../support/processes/cli.ts";
import { probe, probeUntil } from "../../support/processes/health-client.ts";
import { freePort } from "../../support/processes/ports.ts";

/** What Kubernetes does to pods, without a cluster: signals, and the same command line again under the same node name. */

const golden = goldenRun("qwen2-gqa-tied");
const long = { ...golden, args: { ...golden.args, num_train_epochs: 20, save_steps: 1000 } };
const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

/** The adapter of the undisturbed run; the number of devices does not matter to its bits. */
let calm: Promise<Buffer> | null = null;
function undisturbed(t: TestContext): Promise<Buffer> {
  const run = async () => {
    const output = join(temporaryFolder(t), "calm");
    const { code, stderr } = await coordinator(goldenFlags(long, output, "--workers", "2"));
    assert.equal(code, 0, stderr);
    return adapter(output);
  };
  calm ??= run();
  return calm;
}

function startPod(port: number, node: number, ...more: string[]) {
  const child = startWorker([
    ...["--coordinator", `127.0.0.1:${port}`, "--node-name", `worker-${node}`, "--devices", "cpu", "--threads", "1"],
    ...["--log-level", "debug", ...more],
  ]);
  return { child, ended: outcome(child) };
}

function runFlags(output: string, port: number, ...more: string[]): string[] {
  return goldenFlags(long, output, "--listen", `127.0.0.1:${port}`, "--nnodes", "2", ...more);
}

/** Runs `act` once, when the step after this one is under way. */
function after(step: number, act: () => void): (text: string) => void {
  let done = false;
  return (text) => {
    if (done || !text.includes(`"step":${step},`)) return;
    done = true;
    act();
  };
}

const steps = ({ stdout }: Outcome) => events(stdout, "step").map(({ step }) => step as number);
const from = (first: number, last: number) => Array.from({ length: last - first + 1 }, (_, index) => first + index);

test("SIGTERM to a worker: the step under way is saved, the same rank returns, no step runs twice", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const port = await freePort();
  const pods = [startPod(port, 0), startPod(port, 1)] as const;
  const run = outcome(
    startCoordinator(runFlags(output, port)),
    after(12, () => pods[1].child.kill("SIGTERM")),
  );
  const left = await pods[1].ended;
  assert.equal(left.code, 143, left.stderr);
  assert.match(left.stderr, /joined as rank 1/);
  const successor = startPod(port, 1);
  const finished = await run;
  assert.equal(finished.code, 0, finished.stderr);
  assert.match(
    finished.stderr,
    /rank 1 \(worker worker-1.* was told to stop; it stays until the step under way is saved/,
  );
  assert.doesNotMatch(finished.stderr, /was lost/);
  assert.deepEqual(steps(finished), from(1, steps(finished).at(-1)!));
  const returned = await successor.ended;
  assert.equal(returned.code, 0, returned.stderr);
  assert.match(returned.stderr, /joined as rank 1/);
  const stayed = await pods[0].ended;
  assert.equal(stayed.code, 0, stayed.stderr);
  assert.equal(stayed.stderr.match(/joined as rank 0/g)?.length, 2);
  assert.deepEqual(adapter(output), await undisturbed(t));
});

test("SIGTERM to the coordinator: it saves and ends with 143; the workers wait; its successor goes on", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const [port, health, nodeHealth] = [await freePort(), await freePort(), await freePort()];
  const probes = ["--health-listen", `127.0.0.1:${health}`];
  // A node of two devices: its parent process answers probes for both ranks.
  const node = startPod(port, 0, "--devices", "cpu,cpu", "--health-listen", `127.0.0.1:${nodeHealth}`);
  assert.equal(await probeUntil(`127.0.0.1:${nodeHealth}`, "NOT_SERVING"), "NOT_SERVING");
  assert.equal(await probe(`127.0.0.1:${nodeHealth}`, "liveness"), "SERVING");

  const flags = runFlags(output, port, "--resume-from-checkpoint", "auto", ...probes);
  const first = startCoordinator(flags);
  const stopped = outcome(
    first,
    after(9, () => first.kill("SIGTERM")),
  );
  assert.equal(await probeUntil(`127.0.0.1:${health}`, "NOT_SERVING"), "NOT_SERVING");
  const pod = startPod(port, 1);
  const interrupted = await stopped;
  assert.equal(interrupted.code, 143, interrupted.stderr);
  assert.match(interrupted.stderr, /PL_INTERRUPTED.*which is saved/);
  assert.equal(existsSync(join(output, "adapter_model.safetensors")), false);
  const last = steps(interrupted).at(-1)!;
  assert.deepEqual(
    readdirSync(output).filter((name) => name.includes("checkpoint")),
    [`checkpoint-${last}`],
  );
  assert.equal(await probeUntil(`127.0.0.1:${nodeHealth}`, "NOT_SERVING"), "NOT_SERVING");
  assert.deepEqual([node.child.exitCode, pod.child.exitCode], [null, null]);

  const successor = outcome(startCoordinator(flags));
  const serving = await Promise.all([health, nodeHealth].map((at) => probeUntil(`127.0.0.1:${at}`, "SERVING")));
  assert.deepEqual(serving, ["SERVING", "SERVING"]);
  const finished = await successor;
  assert.equal(finished.code, 0, finished.stderr);
  assert.equal(steps(finished)[0], last + 1);
  assert.deepEqual(adapter(output), await undisturbed(t));
  for (const { ended } of [node, pod]) {
    const { code, stderr } = await ended;
    assert.equal(code, 0, stderr);
  }
});

test("a pod that is gone at once: its successor takes the same rank, from the last checkpoint", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const port = await freePort();
  const pods = [startPod(port, 0), startPod(port, 1)] as const;
  const run = outcome(
    startCoordinator(runFlags(output, port, "--save-steps", "5")),
    after(12, () => pods[0].child.kill("SIGKILL")),
  );
  await pods[0].ended;
  const successor = startPod(port, 0);
  const finished = await run;
  assert.equal(finished.code, 0, finished.stderr);
  assert.match(finished.stderr, /rank 0 \(worker worker-0.* was lost/);
  assert.match((await successor.ended).stderr, /joined as rank 0/);
  assert.equal((await pods[1].ended).code, 0);
  assert.deepEqual(adapter(output), await undisturbed(t));
});

test("SIGTERM before a step: nothing to save, and 143 all the same", async (t) => {
  const [port, nowhere, ...health] = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
  const child = startCoordinator(runFlags(join(temporaryFolder(t), "run"), port!));
  const waiting = outcome(child);
  assert.equal(await probeUntil(`127.0.0.1:${port}`, "NOT_SERVING"), "NOT_SERVING");
  // One has joined and waits for the other node, one dials where nobody listens.
  const pods = [port!, nowhere!].map((at, node) => startPod(at, node, "--health-listen", `127.0.0.1:${health[node]}`));
  for (const [node, { child, ended }] of pods.entries()) {
    assert.equal(await probeUntil(`127.0.0.1:${health[node]}`, "NOT_SERVING"), "NOT_SERVING");
    child.kill("SIGTERM");
    assert.equal((await ended).code, 143);
  }
  child.kill("SIGTERM");
  const stopped = await waiting;
  assert.equal(stopped.code, 143, stopped.stderr);
  assert.match(stopped.stderr, /PL_INTERRUPTED.*before a step/);
});

test("codes tell a mistake from bad luck", async () => {
  const nobody = await startPod(await freePort(), 0, "--join-timeout", "0.2").ended;
  assert.equal(nobody.code, 75, nobody.stderr);
  const mistaken = await startPod(1, 0, "--devices", "cuda:99").ended;
  assert.equal(mistaken.code, 1, mistaken.stderr);
});
