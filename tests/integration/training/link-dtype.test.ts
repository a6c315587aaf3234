import assert from "node:assert/strict";
import { cpSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goldenFlags, goldenRun, relative } from "../../support/models/golden.ts";
import { coordinator, events, outcome, startCoordinator, temporaryFolder } from "../../support/processes/cli.ts";
import { HOST_NCCL } from "../../unit/links/host-nccl.ts";

const golden = goldenRun("qwen1");
const STAGES = ["--workers", "2", "--threads", "1", "--device-map", "balanced"];
const E4M3 = ["--link-dtype", "float8_e4m3fn"];
const adapter = (output: string) => readFileSync(join(output, "adapter_model.safetensors"));

/** What a run over two stages learned, and bytes that its first rank sent in a step on average. */
async function run(output: string, flags: readonly string[], environment: Record<string, string> = {}) {
  const all = goldenFlags(golden, output, ...STAGES, ...flags);
  const { code, stdout, stderr } = await outcome(startCoordinator(all, environment));
  assert.equal(code, 0, stderr);
  const { ranks } = events(stdout, "predictions")[0] as unknown as { ranks: { sent_bytes: number }[] };
  const losses = events(stdout, "log").flatMap(({ loss }) => (loss === undefined ? [] : [loss as number]));
  return { losses, sent: ranks[0]!.sent_bytes, bits: adapter(output), said: stderr };
}

test("activations and gradients in e4m3 between stages: few bytes, losses close by, the same bits over every link", async (t) => {
  const folder = temporaryFolder(t);
  const plain = await run(join(folder, "plain"), []);
  const shm = await run(join(folder, "shm"), [...E4M3, "--link", "shm"]);
  const grpc = await run(join(folder, "grpc"), [...E4M3, "--link", "grpc"]);
  const nccl = await run(join(folder, "nccl"), [...E4M3, "--link", "nccl"], { PIPELORA_NCCL_LIBRARY: HOST_NCCL });
  assert.deepEqual(grpc.bits, shm.bits);
  assert.deepEqual(nccl.bits, shm.bits);
  // Compute is in float32 and a token has 64 numbers: 64 + 4 bytes of 256.
  assert.ok(Math.abs(shm.sent / plain.sent - 68 / 256) < 1e-9, `${shm.sent} of ${plain.sent}`);
  assert.notDeepEqual(shm.bits, plain.bits);
  assert.equal(shm.losses.length, plain.losses.length);
  const off = shm.losses.map((loss, step) => relative(loss, plain.losses[step]!));
  assert.ok(Math.max(...off) < 2e-2, `${off}`);
  assert.equal(shm.said.split("no longer give the same bits").length, 2, shm.said);
  assert.doesNotMatch(plain.said, /link-dtype/);
});

test("a run that is resumed over the same stages ends with the same bits; with another link dtype it is refused", async (t) => {
  const folder = temporaryFolder(t);
  const [whole, output] = [join(folder, "whole"), join(folder, "resumed")];
  const train = (to: string, ...flags: string[]) =>
    coordinator(goldenFlags(golden, to, ...STAGES, "--link-dtype", "bfloat16", "--save-steps", "2", ...flags));
  const first = await train(whole);
  assert.equal(first.code, 0, first.stderr);
  cpSync(join(whole, "checkpoint-2"), join(output, "checkpoint-2"), { recursive: true });
  const other = await train(output, ...E4M3, "--resume-from-checkpoint");
  assert.notEqual(other.code, 0);
  assert.match(other.stderr, /PL_RESUME_INVALID.*link_dtype is .*float8_e4m3fn.*, was .*bfloat16/);
  const rest = await train(output, "--resume-from-checkpoint");
  assert.equal(rest.code, 0, rest.stderr);
  assert.deepEqual(adapter(output), adapter(whole));
});
