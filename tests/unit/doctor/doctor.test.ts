import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT, PACKAGE_VERSION } from "../../../src/common/root.ts";
import { clockFinding } from "../../../src/doctor/clock.ts";
import { type Finding, fail, formatFindings, ok, warn } from "../../../src/doctor/finding.ts";
import { gpuFindings, ncclFinding } from "../../../src/doctor/gpu.ts";
import {
  diskFinding,
  limitsFinding,
  memoryFinding,
  sharedMemoryFinding,
  softLimit,
} from "../../../src/doctor/machine.ts";
import { hostFinding, portsFinding } from "../../../src/doctor/network.ts";
import { engineFinding, nodeFinding, versionFinding } from "../../../src/doctor/software.ts";
import type { Capabilities } from "../../../src/engine/index.ts";

const verdicts = (findings: readonly Finding[]) => findings.map(({ name, verdict }) => [name, verdict]);
const none = { version: null, reason: "libnccl.so.2 could not be opened", hostMemory: false };
const device = {
  index: 0,
  pciBusId: "0000:1b:00.0",
  name: "NVIDIA H200",
  capability: [9, 0] as const,
  totalBytes: 141e9,
  freeBytes: 140e9,
};

function machine(cuda: Capabilities["cuda"], nccl: Capabilities["nccl"] = none): Capabilities {
  return {
    version: PACKAGE_VERSION,
    build: "b",
    cpu: { isa: "avx2", threads: 2, bf16: false, memoryBytes: 1 },
    cuda,
    nccl,
  };
}

test("what is not enough says what to do, what is enough does not", () => {
  const gib = 1024 ** 3;
  const pairs: [Finding, Finding][] = [
    [nodeFinding("20.15.0"), nodeFinding("20.14.9")],
    [nodeFinding("22.0.0"), nodeFinding("18.20.4")],
    [memoryFinding(8 * gib), memoryFinding(gib)],
    [hostFinding("node-1"), hostFinding("localhost")],
    [versionFinding(machine(null)), versionFinding({ ...machine(null), version: "0.0.1" })],
    [ncclFinding(2, { ...none, version: "2.27.3" }), ncclFinding(2, none)],
  ];
  for (const [enough, little] of pairs) {
    assert.deepEqual([enough.verdict, enough.advice], ["ok", null]);
    assert.notEqual(little.verdict, "ok");
    assert.ok(little.advice!.endsWith(".") || little.advice!.length > 10);
  }
  assert.equal(ncclFinding(1, none).verdict, "ok");
  const day = 86_400_000;
  assert.equal(clockFinding(Date.now() - 400 * day).verdict, "fail");
  assert.notEqual(clockFinding().verdict, "fail");
});

test("shared memory matters to NCCL between GPUs alone", async () => {
  assert.equal((await sharedMemoryFinding(1, "/nowhere")).verdict, "ok");
  const finding = await sharedMemoryFinding(2, "/nowhere");
  assert.equal(finding.verdict, "warn");
  assert.match(finding.advice!, /--shm-size/);
});

test("GPUs: none, unusable, used", async () => {
  assert.match((await gpuFindings(machine(null)))[0]!.found, /CPU|without CUDA/);
  const unusable = await gpuFindings(
    machine({
      runtime: 13000,
      driver: 11040,
      devices: [],
      reason: "the driver supports CUDA 11.4, this build needs 13.0",
    }),
  );
  assert.match(unusable[0]!.found, /CUDA 11\.4/);
  const two = await gpuFindings(
    machine({ runtime: 13000, driver: 13000, devices: [device, { ...device, index: 1 }], reason: null }),
  );
  assert.deepEqual(verdicts(two), [
    ["driver", "ok"],
    ["cuda:0", "ok"],
    ["cuda:1", "ok"],
    ["nccl", "warn"],
  ]);
  assert.match(two[1]!.found, /H200, sm_90, 130\.4 of 131\.3 GiB free/);
});

test("limits are read as Linux writes them", async () => {
  const text =
    "Limit                     Soft Limit           Hard Limit           Units\nMax processes             unlimited            95                   processes\nMax open files            256                  4096                 files\n";
  assert.deepEqual(
    [softLimit(text, "Max open files"), softLimit(text, "Max processes"), softLimit(text, "Max nothing")],
    [256, null, null],
  );
  assert.match((await limitsFinding()).found, /^open files: /);
});

test("this machine's ports, disk and engine are looked at", async () => {
  assert.notEqual((await portsFinding()).verdict, "fail");
  assert.match((await diskFinding(join(PACKAGE_ROOT, "not", "yet"))).found, /GiB free at .*not/);
  const { finding, capabilities } = engineFinding();
  assert.equal(finding.verdict, "ok");
  assert.ok(capabilities!.cpu.threads > 0);
});

test("a line each, with what to do behind what was found", () => {
  const text = formatFindings([
    ok("node", "20.15.0"),
    warn("shm", "64.0 MiB", "Give it more."),
    fail("engine", "none", "Build it."),
  ]);
  assert.equal(
    text,
    "node       ok    20.15.0\nshm        warn  64.0 MiB. Give it more.\nengine     fail  none. Build it.\n",
  );
});
