import assert from "node:assert/strict";
import { cpSync, existsSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type GoldenRun, goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { coordinator, events, outcome, startCoordinator, temporaryFolder } from "../../support/processes/cli.ts";
import { childrenOf } from "../../support/processes/processes.ts";
import { RUN_RECORDS } from "../../support/processes/run-records.ts";

const golden = goldenRun("qwen1-shuffled");
const everyStep: GoldenRun = { ...golden, args: { ...golden.args, save_steps: 1 } };
const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));
const flags = (output: string, ...more: string[]) => goldenFlags(everyStep, output, "--workers", "1", ...more);

/** Changes one bit in the middle of a file. */
function flipBit(path: string): void {
  const bytes = readFileSync(path);
  const place = Math.floor((bytes.length * 3) / 4);
  bytes[place] = bytes[place]! ^ 1;
  writeFileSync(path, bytes);
}

test("a damaged newest checkpoint is passed over by name, and the run ends with the undisturbed bits", async (t) => {
  const root = temporaryFolder(t);
  const whole = join(root, "whole");
  assert.equal((await coordinator(flags(whole))).code, 0);
  const damages: Record<string, (checkpoint: string) => void> = {
    "an empty state": (dir) => truncateSync(join(dir, "trainer_state.json"), 0),
    "a cut state": (dir) => truncateSync(join(dir, "trainer_state.json"), 100),
    "a bit of the adapter": (dir) => flipBit(join(dir, "adapter_model.safetensors")),
    "a bit of the optimizer": (dir) => flipBit(join(dir, "optimizer.safetensors")),
    "another step's number": (dir) => {
      const path = join(dir, "trainer_state.json");
      writeFileSync(path, readFileSync(path, "utf8").replace('"global_step": 5', '"global_step": 4'));
    },
  };
  for (const [what, damage] of Object.entries(damages)) {
    const output = join(root, what.replaceAll(/\W/g, "-"));
    for (const name of ["checkpoint-4", "checkpoint-5"])
      cpSync(join(whole, name), join(output, name), { recursive: true });
    damage(join(output, "checkpoint-5"));
    const { code, stdout, stderr } = await coordinator(flags(output, "--resume-from-checkpoint", "auto"));
    assert.equal(code, 0, `${what}: ${stderr}`);
    assert.match(stderr, /passed over: .*checkpoint-5.*resuming from the older .*checkpoint-4/s, what);
    assert.ok(
      events(stdout, "note").some(({ text }) => text === "resumed after step 4"),
      what,
    );
    assert.deepEqual(adapter(output), adapter(whole), what);
  }
});

test("a restart never takes up an earlier run's checkpoints, nor does a later resume", async (t) => {
  const root = temporaryFolder(t);
  const long: GoldenRun = { ...golden, args: { ...golden.args, num_train_epochs: 15, save_steps: 5 } };
  const run = (output: string, from: string, ...more: string[]) => [
    ...goldenFlags(long, output, "--workers", "2", ...more),
    ...["--adapter", from],
  ];
  const other = join(root, "other");
  assert.equal((await coordinator(flags(other))).code, 0);
  const calm = join(root, "calm");
  assert.equal((await coordinator(run(calm, other))).code, 0);
  const output = join(root, "run");
  assert.equal((await coordinator(run(output, join(golden.folder, "adapter_init")))).code, 0);
  const child = startCoordinator(run(output, other, "--overwrite-output-dir"));
  let hit = false;
  const { code, stderr } = await outcome(child, (text) => {
    if (hit || !text.includes('"step":12,')) return;
    hit = true;
    process.kill(childrenOf(child.pid!).at(-1)!, "SIGKILL");
  });
  assert.equal(code, 0, stderr);
  assert.ok(hit);
  assert.deepEqual(adapter(output), adapter(calm));

  // A second overwriting run is stopped early: the first one's later checkpoints must not be what goes on.
  const stopped = startCoordinator(run(output, join(golden.folder, "adapter_init"), "--overwrite-output-dir"));
  let asked = false;
  const end = await outcome(stopped, (text) => {
    if (asked || !text.includes('"step":7,')) return;
    asked = true;
    stopped.kill("SIGINT");
  });
  assert.equal(end.code, 130, end.stderr);
  const again = await coordinator(run(output, join(golden.folder, "adapter_init"), "--resume-from-checkpoint", "auto"));
  assert.equal(again.code, 0, again.stderr);
  const undisturbed = join(root, "undisturbed");
  assert.equal((await coordinator(run(undisturbed, join(golden.folder, "adapter_init")))).code, 0);
  assert.deepEqual(adapter(output), adapter(undisturbed));
});

test("a last update that is not finite ends the run and saves nothing", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const update = ["--max-steps", "1", "--learning-rate", "1e308", "--warmup-steps", "0"];
  const { code, stderr } = await coordinator(flags(output, ...update));
  assert.equal(code, 1);
  assert.match(stderr, /PL_LOSS_NOT_FINITE/);
  assert.deepEqual(readdirSync(output).sort(), [...RUN_RECORDS].sort());
});

test("merge refuses the base model's own folder and leaves it as it was", async (t) => {
  const root = temporaryFolder(t);
  const base = join(root, "base");
  cpSync(join(golden.folder, "model"), base, { recursive: true });
  const before = readdirSync(base).map((name) => readFileSync(join(base, name)));
  const { code, stderr } = await coordinator([
    ...["merge", "--model", base, "--adapter", join(golden.folder, "adapter_init")],
    ...["--output-dir", join(root, "x", "..", "base")],
  ]);
  assert.equal(code, 1);
  assert.match(stderr, /^PL_[A-Z_]+: .*base/m);
  assert.deepEqual(
    readdirSync(base).map((name) => readFileSync(join(base, name))),
    before,
  );
  assert.ok(!existsSync(join(root, "x")));
});
