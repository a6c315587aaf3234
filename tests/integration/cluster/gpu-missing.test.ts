import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { loadEngine } from "../../../src/engine/index.ts";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { outcome, startCoordinator, startWorker, temporaryFolder } from "../../support/processes/cli.ts";

const { cuda } = loadEngine().capabilities();
const builtWithout = cuda === null && "the addon was built without nvcc";

const worker = (environment: Record<string, string> = {}) =>
  outcome(startWorker(["--coordinator", "127.0.0.1:9", "--devices", "cuda:0", "--join-timeout", "1"], environment));

/** A folder whose libcuda.so.1 is a driver of CUDA 11.4: what the loader finds first. */
function oldDriver(t: TestContext): Record<string, string> {
  const folder = temporaryFolder(t);
  const source = join(PACKAGE_ROOT, "tests", "fixtures", "old-driver.c");
  const built = spawnSync("cc", ["-shared", "-fPIC", "-o", join(folder, "libcuda.so.1"), source], { encoding: "utf8" });
  assert.equal(built.status, 0, built.stderr);
  return { LD_LIBRARY_PATH: folder };
}

test("a GPU asked for where there is none", { skip: cuda?.reason === null && "this machine has a GPU" }, async () => {
  const { code, stderr } = await worker();
  assert.equal(code, 1);
  assert.match(stderr, /PL_DEVICE_UNAVAILABLE: device cuda:0 can't be used: /);
  assert.match(stderr, cuda === null ? /this build has no CUDA part/ : /no NVIDIA driver is loaded|no NVIDIA GPU|CUDA/);
  assert.match(stderr, /Devices here: cpu/);
});

test("a driver too old for the runtime: both versions, and no crash", { skip: builtWithout }, async (t) => {
  const { code, stderr } = await worker(oldDriver(t));
  assert.equal(code, 1);
  assert.match(stderr, /PL_DEVICE_UNAVAILABLE.*the driver supports CUDA 11\.4, this build needs 1[23]\.\d/);
});

test("a run that falls back to the CPU for want of a driver says so", { skip: builtWithout }, async (t) => {
  const golden = goldenRun("qwen1");
  const flags = goldenFlags(golden, join(temporaryFolder(t), "out"), "--max-steps", "1");
  const { code, stderr } = await outcome(startCoordinator(flags, oldDriver(t)));
  assert.equal(code, 0, stderr);
  assert.match(stderr, /no GPU is used: the driver supports CUDA 11\.4/);
});
