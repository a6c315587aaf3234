import assert from "node:assert/strict";
import { cpSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { coordinator, events, temporaryFolder } from "../support/cli.ts";
import { type GoldenRun, goldenFlags, goldenRun } from "../support/golden.ts";

const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

async function run(golden: GoldenRun, output: string, ...more: string[]): Promise<string> {
  const result = await coordinator(goldenFlags(golden, output, ...more));
  assert.equal(result.code, 0, result.stderr);
  return result.stdout;
}

for (const name of ["qwen1-shuffled", "granite"]) {
  test(`${name}: neftune_noise_alpha: the same bits whatever the placement, schedule or checkpointing, and resumed`, async (t) => {
    const whole = goldenRun(name);
    const golden = { ...whole, args: { ...whole.args, save_steps: 1, neftune_noise_alpha: 5 } };
    const root = temporaryFolder(t);
    const at = (variant: string) => join(root, variant);
    await run(golden, at("one"), "--workers", "1");
    await run(golden, at("three"), "--workers", "3", "--gradient-checkpointing");
    await run(golden, at("gpipe"), "--workers", "2", "--schedule", "gpipe");
    cpSync(join(at("one"), "checkpoint-2"), join(at("resumed"), "checkpoint-2"), { recursive: true });
    await run(golden, at("resumed"), "--workers", "2", "--resume-from-checkpoint");
    for (const variant of ["three", "gpipe", "resumed"]) assert.deepEqual(adapter(at(variant)), adapter(at("one")));
    await run(whole, at("quiet"), "--workers", "1");
    assert.notDeepEqual(adapter(at("quiet")), adapter(at("one")));
    // 0 is what transformers' None does.
    await run({ ...whole, args: { ...whole.args, neftune_noise_alpha: 0 } }, at("zero"), "--workers", "1");
    assert.deepEqual(adapter(at("zero")), adapter(at("quiet")));
  });
}

/** First training loss and first eval_loss of an adapter that does not learn. */
async function losses(t: { after(fn: () => void): void }, ...more: string[]): Promise<[number, number]> {
  const golden = goldenRun("label-smoothing");
  const still = {
    ...golden,
    args: { per_device_train_batch_size: 4, learning_rate: 0, logging_steps: 1, max_steps: 1 },
  };
  const output = join(temporaryFolder(t), "run");
  const evaluated = ["--eval-dataset", join(golden.folder, "data.jsonl"), "--eval-strategy", "steps"];
  const logs = events(await run(still, output, ...evaluated, "--workers", "2", ...more), "log");
  const value = (key: string) => logs.find((log) => key in log)![key] as number;
  return [value("loss"), value("eval_loss")];
}

test("label smoothing mixes two losses, in training and in eval_loss; noise is in training alone", async (t) => {
  const [hard, hardEval] = await losses(t);
  const [flat, flatEval] = await losses(t, "--label-smoothing-factor", "1");
  for (const share of [0.05, 0.3]) {
    const [loss, evalLoss] = await losses(t, "--label-smoothing-factor", String(share));
    assert.ok(Math.abs(loss - ((1 - share) * hard + share * flat)) < 1e-5);
    assert.ok(Math.abs(evalLoss - ((1 - share) * hardEval + share * flatEval)) < 1e-5);
  }
  const [noisy, noisyEval] = await losses(t, "--neftune-noise-alpha", "10");
  assert.notEqual(noisy, hard);
  assert.equal(noisyEval, hardEval);
});
