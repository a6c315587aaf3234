import assert from "node:assert/strict";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type GoldenRun, goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { coordinator, events, temporaryFolder } from "../../support/processes/cli.ts";

const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

async function run(golden: GoldenRun, output: string, ...more: string[]): Promise<string> {
  const result = await coordinator(goldenFlags(golden, output, ...more));
  assert.equal(result.code, 0, result.stderr);
  return result.stdout;
}

// Granite multiplies its embeddings, and the noise is added before; the rest is as for every model.
for (const [name, all] of [
  ["qwen1-shuffled", true],
  ["granite", false],
] as const) {
  test(`${name}: neftune_noise_alpha: the same bits whatever the placement${all ? ", schedule or checkpointing, and resumed" : ""}`, async (t) => {
    const whole = goldenRun(name);
    const golden = { ...whole, args: { ...whole.args, save_steps: 1, neftune_noise_alpha: 5 } };
    const root = temporaryFolder(t);
    const at = (variant: string) => join(root, variant);
    await run(golden, at("one"), "--workers", "1");
    await run(golden, at("three"), "--workers", "3", "--gradient-checkpointing");
    assert.deepEqual(adapter(at("three")), adapter(at("one")));
    if (!all) return;
    await run(golden, at("gpipe"), "--workers", "2", "--schedule", "gpipe");
    cpSync(join(at("one"), "checkpoint-2"), join(at("resumed"), "checkpoint-2"), { recursive: true });
    await run(golden, at("resumed"), "--workers", "2", "--resume-from-checkpoint");
    for (const variant of ["gpipe", "resumed"]) assert.deepEqual(adapter(at(variant)), adapter(at("one")));
    await run(whole, at("quiet"), "--workers", "1");
    assert.notDeepEqual(adapter(at("quiet")), adapter(at("one")));
    // 0 is what transformers' None does.
    await run({ ...whole, args: { ...whole.args, neftune_noise_alpha: 0 } }, at("zero"), "--workers", "1");
    assert.deepEqual(adapter(at("zero")), adapter(at("quiet")));
  });
}

/** First training loss and first eval_loss of an adapter that does not learn. */
async function losses(
  t: { after(fn: () => void): void },
  data: string = join(goldenRun("label-smoothing").folder, "data.jsonl"),
  ...more: string[]
): Promise<[number, number]> {
  const golden = goldenRun("label-smoothing");
  const args = { per_device_train_batch_size: 4, learning_rate: 0, logging_steps: 1, max_steps: 1 };
  const flags = ["--dataset", data, "--eval-dataset", data, "--eval-strategy", "steps", "--workers", "2", ...more];
  const logs = events(await run({ ...golden, args }, join(temporaryFolder(t), "run"), ...flags), "log");
  const value = (key: string) => logs.find((log) => key in log)![key] as number;
  return [value("loss"), value("eval_loss")];
}

test("label smoothing mixes two losses, in training and in eval_loss; noise is in training alone", async (t) => {
  const of = (...flags: string[]) => losses(t, undefined, ...flags);
  const [hard, hardEval] = await of();
  const [flat, flatEval] = await of("--label-smoothing-factor", "1");
  for (const share of [0.05, 0.3]) {
    const [loss, evalLoss] = await of("--label-smoothing-factor", String(share));
    assert.ok(Math.abs(loss - ((1 - share) * hard + share * flat)) < 1e-5);
    assert.ok(Math.abs(evalLoss - ((1 - share) * hardEval + share * flatEval)) < 1e-5);
  }
  const [noisy, noisyEval] = await of("--neftune-noise-alpha", "10");
  assert.notEqual(noisy, hard);
  assert.equal(noisyEval, hardEval);
});

test("weights of labels: the loss is their weighted mean, whatever the cut", async (t) => {
  const root = temporaryFolder(t);
  const rows = readFileSync(join(goldenRun("label-smoothing").folder, "data.jsonl"), "utf8")
    .split("\n", 4)
    .map((line) => JSON.parse(line) as { input_ids: number[]; labels: number[] });
  const weighted = (name: string, even: number, odd: number) => {
    const path = join(root, `${name}.jsonl`);
    const lines = rows.map((row) => ({
      ...row,
      loss_weights: row.labels.map((_label, at) => (at % 2 === 0 ? even : odd)),
    }));
    writeFileSync(path, lines.map((line) => JSON.stringify(line)).join("\n"));
    return path;
  };
  const count = (parity: number) =>
    rows.reduce(
      (sum, { labels }) => sum + labels.filter((label, at) => at > 0 && at % 2 === parity && label !== -100).length,
      0,
    );
  const [evenLoss] = await losses(t, weighted("even", 1, 0));
  const [oddLoss] = await losses(t, weighted("odd", 0, 1));
  for (const [even, odd] of [
    [0.25, 3],
    [7, 0.001],
  ] as const) {
    const sum = even * count(0) + odd * count(1);
    const expected = (even * count(0) * evenLoss + odd * count(1) * oddLoss) / sum;
    for (const flags of [[], ["--micro-batch-tokens", "30"]]) {
      const [loss, evalLoss] = await losses(t, weighted(`${even}-${odd}`, even, odd), ...flags);
      assert.ok(Math.abs(loss - expected) < 1e-5, `${loss} vs ${expected}`);
      assert.ok(Math.abs(evalLoss - expected) < 1e-5, `${evalLoss} vs ${expected}`);
    }
  }
});
