import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { defaultConfig } from "../../../../src/config/load.ts";
import { templateDate } from "../../../../src/coordinator/run/checkpoints/resume-point.ts";
import { changedFreely, changedSettings } from "../../../../src/coordinator/run/checkpoints/run-identity.ts";
import { withWholeSteps } from "../../../../src/coordinator/run/steps/whole-steps.ts";
import { temporaryFolder } from "../../../support/processes/cli.ts";

test("steps below 1 are a share of all steps, rounded up", () => {
  const rest = { load_best_model_at_end: false, eval_strategy: "no", save_strategy: "steps" } as const;
  const steps = { ...rest, logging_steps: 0.1, save_steps: 0.5, eval_steps: 0.34 };
  assert.deepEqual(withWholeSteps(steps, 4), { ...rest, logging_steps: 1, save_steps: 2, eval_steps: 2 });
  assert.deepEqual(withWholeSteps(steps, 101), { ...rest, logging_steps: 11, save_steps: 51, eval_steps: 35 });
  const whole = { ...rest, logging_steps: 1, save_steps: 500, eval_steps: null };
  assert.deepEqual(withWholeSteps(whole, 4), whole);
});

test("a best model needs a checkpoint of every evaluation: whole multiples, once shares are steps", () => {
  const config = {
    load_best_model_at_end: true,
    eval_strategy: "steps",
    save_strategy: "steps",
    logging_steps: 5,
  } as const;
  const set = (save_steps: number, eval_steps: number | null, total = 100) =>
    withWholeSteps({ ...config, save_steps, eval_steps }, total);
  set(20, 10);
  set(10, null);
  set(0.2, 0.1);
  assert.throws(() => set(15, 10), { code: "PL_CONFIG_INVALID", message: /a multiple of --eval-steps, got 15 and 10/ });
  assert.throws(() => set(12, null), { code: "PL_CONFIG_INVALID", message: /got 12 and 5/ });
  // 0.2 and 0.1 of 12 steps are 3 and 2.
  assert.throws(() => set(0.2, 0.1, 12), { code: "PL_CONFIG_INVALID", message: /got 3 and 2/ });
});

test("a setting that differs from the checkpoint's is named with both values; steps of saving are none", () => {
  const config = { ...defaultConfig(), learning_rate: 1e-3, save_steps: 7 };
  const { lora_r: _, ...written } = { ...defaultConfig(), save_steps: 5, seed: 43 };
  assert.deepEqual(changedSettings(config, written), ["seed is 42, was 43"]);
  assert.deepEqual(changedSettings(config, { ...config, logging_steps: 1 }), []);
  assert.deepEqual(changedFreely(config, written), ["learning_rate is 0.001, was 0.00005"]);
});

test("a run keeps the date its templates began with", async (t) => {
  const root = temporaryFolder(t);
  for (const [step, date] of [
    [5, "2026-01-01T10:00:00"],
    [12, "2026-02-02T10:00:00"],
  ] as const) {
    mkdirSync(join(root, `checkpoint-${step}`));
    writeFileSync(join(root, `checkpoint-${step}`, "training_args.json"), JSON.stringify({ template_date: date }));
  }
  const config = { ...defaultConfig(), output_dir: root };
  assert.equal(await templateDate({ ...config, resume_from_checkpoint: "auto" }), "2026-02-02T10:00:00");
  assert.equal(await templateDate({ ...config, resume_from_checkpoint: true }), "2026-02-02T10:00:00");
  const named = { ...config, resume_from_checkpoint: join(root, "checkpoint-5") };
  assert.equal(await templateDate(named), "2026-01-01T10:00:00");
  assert.equal(await templateDate({ ...named, template_date: "2025-05-05" }), "2025-05-05");
  const fresh = await templateDate(config);
  assert.ok(Math.abs(Date.parse(fresh) - Date.now()) < 60_000, fresh);
});
