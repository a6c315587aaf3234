import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { coordinator, events, readJson, temporaryFolder } from "../../support/processes/cli.ts";

const golden = goldenRun("qwen2-gqa-tied");
const bits = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

interface State {
  readonly global_step: number;
  readonly best_metric: number | null;
  readonly best_global_step: number | null;
  readonly best_model_checkpoint: string | null;
  readonly log_history: readonly Readonly<Record<string, number>>[];
  readonly stateful_callbacks: Readonly<Record<string, { attributes: Readonly<Record<string, number>> }>>;
}

/** The first rows are learnt by heart, so that other rows are worse and worse predicted: the best evaluation is not the last. */
function overfitting(root: string, ...more: string[]): string[] {
  const rows = readFileSync(join(golden.folder, "data.jsonl"), "utf8").trimEnd().split("\n");
  writeFileSync(join(root, "train.jsonl"), `${rows.slice(0, 4).join("\n")}\n`);
  writeFileSync(join(root, "eval.jsonl"), `${rows.slice(4).join("\n")}\n`);
  const output = join(root, "out");
  return [
    ...goldenFlags(golden, output, "--workers", "2"),
    ...["--dataset", join(root, "train.jsonl"), "--eval-dataset", join(root, "eval.jsonl")],
    ...[
      "--learning-rate",
      "0.03",
      "--lr-scheduler-type",
      "constant",
      "--num-train-epochs",
      "1000",
      "--max-steps",
      "24",
    ],
    ...["--gradient-accumulation-steps", "1", "--eval-strategy", "steps", "--eval-steps", "2", "--save-steps", "2"],
    ...more,
  ];
}

/** Step and loss of each evaluation. */
function evaluations({ log_history: history }: State): { step: number; loss: number }[] {
  return history
    .filter((entry) => "eval_loss" in entry)
    .map((entry) => ({ step: entry["step"]!, loss: entry["eval_loss"]! }));
}

function bestOf(state: State) {
  return evaluations(state).reduce((best, other) => (other.loss < best.loss ? other : best));
}

for (const limit of [null, 1, 2]) {
  test(`the run ends with the best checkpoint's adapter, save_total_limit ${limit ?? "none"}`, async (t) => {
    const root = temporaryFolder(t);
    const limits = limit === null ? [] : ["--save-total-limit", String(limit)];
    const result = await coordinator(overfitting(root, "--load-best-model-at-end", ...limits));
    assert.equal(result.code, 0, result.stderr);
    const output = join(root, "out");
    const state = readJson<State>(output, "trainer_state.json");
    const best = bestOf(state);
    assert.ok(best.step < 24, `the last evaluation is the best: ${JSON.stringify(evaluations(state))}`);
    assert.deepEqual(
      [state.global_step, state.best_global_step, state.best_metric, state.best_model_checkpoint],
      [24, best.step, best.loss, join(output, `checkpoint-${best.step}`)],
    );
    assert.deepEqual(bits(output), bits(join(output, `checkpoint-${best.step}`)));
    const kept = readdirSync(output).filter((name) => name.startsWith("checkpoint-"));
    if (limit === null) assert.equal(kept.length, 12);
    if (limit === 1) assert.deepEqual(kept, [`checkpoint-${best.step}`]);
    if (limit === 2) assert.deepEqual(kept.sort(), ["checkpoint-24", `checkpoint-${best.step}`].sort());
    assert.match(result.stdout + result.stderr, new RegExp(`checkpoint-${best.step}`));
  });
}

test("early stopping ends the run after its patience, and a resumed run counts on", async (t) => {
  const root = temporaryFolder(t);
  const flags = overfitting(root, "--early-stopping-patience", "3", "--load-best-model-at-end");
  const whole = await coordinator(flags);
  assert.equal(whole.code, 0, whole.stderr);
  const output = join(root, "out");
  const state = readJson<State>(output, "trainer_state.json");
  const best = bestOf(state);
  const stopped = best.step + 3 * 2;
  assert.ok(stopped < 24, `nothing stopped: ${JSON.stringify(evaluations(state))}`);
  assert.equal(state.global_step, stopped);
  assert.equal(state.stateful_callbacks["EarlyStoppingCallback"]!.attributes["early_stopping_patience_counter"], 3);
  assert.equal(events(whole.stdout, "end").length, 1);
  const adapter = bits(output);

  // From one evaluation before the end: the counter stands in the checkpoint.
  const resumed = await coordinator([
    ...flags,
    ...["--resume-from-checkpoint", join(output, `checkpoint-${stopped - 2}`)],
  ]);
  assert.equal(resumed.code, 0, resumed.stderr);
  assert.equal(readJson<State>(output, "trainer_state.json").global_step, stopped);
  assert.deepEqual(bits(output), adapter);
});

test("save_strategy best saves where an evaluation is the best so far, and nowhere else", async (t) => {
  const root = temporaryFolder(t);
  const result = await coordinator(overfitting(root, "--save-strategy", "best", "--load-best-model-at-end"));
  assert.equal(result.code, 0, result.stderr);
  const output = join(root, "out");
  let least = Number.POSITIVE_INFINITY;
  const better = evaluations(readJson<State>(output, "trainer_state.json")).filter(({ loss }) => {
    const found = loss < least;
    least = Math.min(least, loss);
    return found;
  });
  const saved = readdirSync(output).filter((name) => name.startsWith("checkpoint-"));
  assert.deepEqual(saved.sort(), better.map(({ step }) => `checkpoint-${step}`).sort());
  assert.deepEqual(bits(output), bits(join(output, `checkpoint-${better.at(-1)!.step}`)));
});

test("a best checkpoint that is damaged by the end is no silent other adapter", async (t) => {
  const root = temporaryFolder(t);
  const output = join(root, "out");
  const first = await coordinator(overfitting(root, "--load-best-model-at-end"));
  assert.equal(first.code, 0, first.stderr);
  const { best_global_step: best } = readJson<State>(output, "trainer_state.json");
  const file = join(output, `checkpoint-${best}`, "adapter_model.safetensors");
  const bytes = readFileSync(file);
  bytes[bytes.length - 1]! ^= 1;
  writeFileSync(file, bytes);
  const resumed = await coordinator([
    ...overfitting(root, "--load-best-model-at-end"),
    ...["--resume-from-checkpoint", join(output, "checkpoint-22")],
  ]);
  assert.notEqual(resumed.code, 0);
  assert.match(resumed.stderr + resumed.stdout, /PL_RESUME_INVALID.*has changed since it was saved/s);
});

test("contradictions are found before anything is loaded", async () => {
  const base = ["--model", "nowhere", "--dataset", "nowhere.jsonl", "--output-dir", "out", "--validation-split", "0.1"];
  for (const [flags, said] of [
    [["--load-best-model-at-end"], /need --eval-strategy/],
    [["--load-best-model-at-end", "--eval-strategy", "epoch"], /--save-strategy steps is not --eval-strategy epoch/],
    [["--early-stopping-patience", "2"], /need --eval-strategy/],
    [["--save-strategy", "best"], /need --eval-strategy/],
    [["--greater-is-better", "true", "--eval-strategy", "steps"], /--greater-is-better acts only with/],
    [["--early-stopping-threshold", "0.1", "--eval-strategy", "steps"], /acts only with --early-stopping-patience/],
    [["--metric-for-best-model", "accuracy", "--eval-strategy", "steps"], /metric/],
  ] as const) {
    const result = await coordinator([...base, ...flags]);
    assert.equal(result.code, 1, `${flags.join(" ")}: ${result.stderr}`);
    assert.match(result.stderr, said);
  }
});
