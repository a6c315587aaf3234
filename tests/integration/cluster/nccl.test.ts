import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { events, outcome, startCoordinator, temporaryFolder } from "../../support/processes/cli.ts";
import { childrenOf, isAlive } from "../../support/processes/processes.ts";
import { HOST_NCCL } from "../../unit/links/host-nccl.ts";

// NCCL's interface over host memory: the engines compute on the CPU, everything else is as with GPUs.
const NCCL = { PIPELORA_NCCL_LIBRARY: HOST_NCCL };
const golden = goldenRun("qwen1");
const adapter = (output: string) => readFileSync(join(output, "adapter_model.safetensors"));

function train(output: string, environment: Record<string, string>, ...flags: string[]) {
  return outcome(startCoordinator(goldenFlags(golden, output, "--threads", "1", ...flags), environment));
}

test("a run over NCCL ends with the bits of one over another link: stages, and replicas of stages", async (t) => {
  const folder = temporaryFolder(t);
  const shapes = [
    ["--workers", "2", "--device-map", "balanced"],
    ["--workers", "4", "--replicas", "2", "--device-map", "balanced"],
  ];
  for (const [index, shape] of shapes.entries()) {
    const outputs = ["shm", "nccl"].map((link) => join(folder, `${index}-${link}`)) as [string, string];
    const [other, nccl] = [
      await train(outputs[0], {}, ...shape, "--link", "shm"),
      await train(outputs[1], NCCL, ...shape, "--link", "nccl"),
    ];
    for (const { code, stderr } of [other, nccl]) assert.equal(code, 0, stderr);
    assert.match(JSON.stringify(events(nccl.stdout, "plan")), /"nccl"/);
    assert.deepEqual(adapter(outputs[1]), adapter(outputs[0]));
  }
});

test("NCCL that was asked for and is missing is refused with the links that remain", async (t) => {
  const nowhere = { PIPELORA_NCCL_LIBRARY: "/nowhere/libnccl.so.2" };
  const folder = temporaryFolder(t);
  const { code, stderr } = await train(
    join(folder, "x"),
    nowhere,
    "--workers",
    "2",
    "--link",
    "nccl",
    "--device-map",
    "balanced",
  );
  assert.equal(code, 1);
  assert.match(
    stderr,
    /PL_CONFIG_INVALID.*--link nccl: ranks 0 and 1 can't use NCCL: .*\/nowhere\/libnccl\.so\.2.*between them there is shm and grpc/s,
  );
});

test("a rank that dies over NCCL costs steps, not the run, and leaves no process", async (t) => {
  const folder = temporaryFolder(t);
  const long = { ...golden, args: { ...golden.args, num_train_epochs: 10, save_steps: 5 } };
  const flags = ["--workers", "3", "--threads", "1", "--device-map", "balanced", "--link", "nccl"];
  const calm = await outcome(startCoordinator(goldenFlags(long, join(folder, "calm"), ...flags), NCCL));
  assert.equal(calm.code, 0, calm.stderr);
  const child = startCoordinator(goldenFlags(long, join(folder, "disturbed"), ...flags), NCCL);
  let workers: number[] = [];
  const { code, stderr } = await outcome(child, (text) => {
    if (workers.length > 0 || !text.includes('"step":7,')) return;
    workers = childrenOf(child.pid!);
    process.kill(workers[1]!, "SIGKILL");
  });
  assert.equal(code, 0, stderr);
  assert.equal(workers.length, 3);
  assert.match(stderr, /was lost.*going on from the last checkpoint/s);
  assert.deepEqual(adapter(join(folder, "disturbed")), adapter(join(folder, "calm")));
  for (const pid of workers) assert.ok(!isAlive(pid));
});
