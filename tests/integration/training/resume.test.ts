import assert from "node:assert/strict";
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import {
  coordinator,
  events,
  outcome,
  readJson,
  startCoordinator,
  temporaryFolder,
} from "../../support/processes/cli.ts";
import { processesMentioning } from "../../support/processes/processes.ts";

const golden = goldenRun("qwen1-shuffled");
const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));
/** Dropout and a checkpoint after every step: what a resumed run must not lose. */
const flags = (output: string, ...more: string[]) =>
  goldenFlags({ ...golden, args: { ...golden.args, save_steps: 1 } }, output, ...more);

test("resumed from any step, over any number of workers, a run ends with the same bits and the same log", async (t) => {
  const root = temporaryFolder(t);
  const whole = join(root, "whole");
  assert.equal((await coordinator(flags(whole, "--workers", "4"))).code, 0);
  const history = readJson<{ log_history: object[] }>(whole, "trainer_state.json").log_history.slice(0, -1);
  for (const [step, workers] of [
    [1, "2"],
    [4, "1"],
    [8, "3"],
  ] as const) {
    const output = join(root, `from-${step}`);
    cpSync(join(whole, `checkpoint-${step}`), join(output, `checkpoint-${step}`), { recursive: true });
    const result = await coordinator(flags(output, "--workers", workers, "--resume-from-checkpoint"));
    assert.equal(result.code, 0, result.stderr);
    assert.deepEqual(adapter(output), adapter(whole), `from step ${step}`);
    const resumed = readJson<{ log_history: object[] }>(output, "trainer_state.json").log_history.slice(0, -1);
    assert.deepEqual(resumed, history);
  }
});

test("Ctrl-C finishes the step and saves; the run resumes to the same bits; no process stays", async (t) => {
  const root = temporaryFolder(t);
  const whole = join(root, "whole");
  assert.equal((await coordinator(flags(whole, "--workers", "2"))).code, 0);
  const output = join(root, "interrupted");
  const child = startCoordinator(flags(output, "--workers", "2", "--save-steps", "1000"));
  let interrupted = false;
  const { code, stderr } = await outcome(child, (text) => {
    if (interrupted || !text.includes('"event":"log"')) return;
    interrupted = true;
    child.kill("SIGINT");
  });
  assert.equal(code, 130, stderr);
  assert.match(stderr, /PL_INTERRUPTED.*which is saved/);
  const [checkpoint] = readdirSync(output).filter((name) => name.startsWith("checkpoint-"));
  assert.ok(checkpoint !== undefined && !existsSync(join(output, "adapter_model.safetensors")));
  assert.deepEqual(processesMentioning(root), []);
  assert.equal((await coordinator(flags(output, "--workers", "2", "--resume-from-checkpoint"))).code, 0);
  assert.deepEqual(adapter(output), adapter(whole));
});

test("a second Ctrl-C stops at once; no process stays, no half-written checkpoint", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const child = startCoordinator(
    flags(output, "--workers", "2", "--num-train-epochs", "100000", "--save-steps", "100000"),
  );
  let interrupted = false;
  const done = outcome(child, (text) => {
    if (interrupted || !text.includes('"event":"log"')) return;
    interrupted = true;
    child.kill("SIGINT");
    child.kill("SIGINT");
  });
  const { code } = await done;
  assert.equal(code, 130);
  await new Promise((resolve) => setTimeout(resolve, 500));
  assert.deepEqual(processesMentioning(output), []);
  for (const name of readdirSync(output)) assert.ok(!name.startsWith("."), `${name} was left`);
});

test("a torn checkpoint is passed over, a missing or foreign one refused", async (t) => {
  const root = temporaryFolder(t);
  const output = join(root, "run");
  assert.equal((await coordinator(flags(output, "--workers", "1", "--max-steps", "4"))).code, 0);
  truncateSync(join(output, "checkpoint-4", "optimizer.safetensors"), 1000);
  const resumed = await coordinator(flags(output, "--workers", "1", "--max-steps", "5", "--resume-from-checkpoint"));
  assert.equal(resumed.code, 0, resumed.stderr);
  const notes = events(resumed.stdout, "note").map(({ text }) => text);
  assert.ok(notes.includes("resumed after step 3"), JSON.stringify(notes));

  const foreign = await coordinator(
    flags(output, "--workers", "1", "--weight-decay", "0.5", "--resume-from-checkpoint"),
  );
  assert.equal(foreign.code, 1);
  assert.match(foreign.stderr, /PL_RESUME_INVALID/);
  const empty = await coordinator(flags(join(root, "empty"), "--workers", "1", "--resume-from-checkpoint"));
  assert.match(empty.stderr, /PL_RESUME_INVALID.*holds no checkpoint/);
  const again = await coordinator(flags(output, "--workers", "1"));
  assert.match(again.stderr, /PL_OUTPUT_UNWRITABLE.*of an earlier run/);
});

test("a resumed run may have another learning rate, which is said; another weight decay is refused by name", async (t) => {
  const root = temporaryFolder(t);
  const whole = join(root, "whole");
  assert.equal((await coordinator(flags(whole))).code, 0);
  const from = (output: string) => {
    cpSync(join(whole, "checkpoint-4"), join(output, "checkpoint-4"), { recursive: true });
    return flags(output, "--resume-from-checkpoint");
  };
  const slower = join(root, "slower");
  const result = await coordinator([...from(slower), "--learning-rate", "0.0002"]);
  assert.equal(result.code, 0, result.stderr);
  assert.match(
    result.stderr,
    /learning_rate is 0\.0002, was 0\.002 in .*checkpoint-4: the run goes on with the new one/,
  );
  const rates = (dir: string) =>
    readJson<{ log_history: { learning_rate?: number }[] }>(dir, "trainer_state.json").log_history.map(
      ({ learning_rate }) => learning_rate,
    );
  const [before, after] = [rates(whole), rates(slower)];
  for (let step = 5; step <= 8; step++) assert.ok(Math.abs(after[step - 1]! / before[step - 1]! - 0.1) < 1e-12);
  assert.notDeepEqual(adapter(slower), adapter(whole));
  const refused = await coordinator([...from(join(root, "decay")), "--weight-decay", "0.5"]);
  assert.match(refused.stderr, /PL_RESUME_INVALID.*weight_decay is 0\.5, was 0\.01/s);
});

test("save_total_limit keeps the newest checkpoints", async (t) => {
  const output = join(temporaryFolder(t), "run");
  assert.equal((await coordinator(flags(output, "--workers", "1", "--save-total-limit", "2"))).code, 0);
  const kept = readdirSync(output).filter((name) => name.startsWith("checkpoint-"));
  assert.deepEqual(kept.sort(), ["checkpoint-8", "checkpoint-9"]);
  rmSync(output, { recursive: true });
});
