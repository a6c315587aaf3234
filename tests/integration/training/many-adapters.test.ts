import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goldenRun } from "../../support/models/golden.ts";
import {
  coordinator,
  events,
  outcome,
  readJson,
  startCoordinator,
  temporaryFolder,
} from "../../support/processes/cli.ts";
import { childrenOf, processesMentioning } from "../../support/processes/processes.ts";

type Settings = Readonly<Record<string, unknown>>;

const { folder } = goldenRun("qwen2-gqa-tied");
const rows = readFileSync(join(folder, "data.jsonl"), "utf8").trim().split("\n");
const adapterFile = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));
const stateOf = (dir: string) =>
  readJson<{ log_history: Record<string, number>[]; global_step: number }>(dir, "trainer_state.json");
/** What does not depend on the clock. */
const logOf = (dir: string) =>
  stateOf(dir)
    .log_history.filter((entry) => !("train_runtime" in entry))
    .map((entry) => Object.fromEntries(Object.entries(entry).filter(([key]) => !/runtime|per_second/.test(key))));

const flagsOf = (settings: Settings) =>
  Object.entries(settings).flatMap(([key, value]) => [
    `--${key.replaceAll("_", "-")}`,
    typeof value === "string"
      ? value
      : Array.isArray(value) && typeof value[0] === "string"
        ? value.join()
        : JSON.stringify(value),
  ]);

/** What all adapters of these tests share. */
const common = (model: string, ...more: string[]) => [
  ...["--model", join(model, "model"), "--compute-dtype", "float32", "--log-level", "warn", "--json"],
  ...["--per-device-train-batch-size", "4", "--logging-steps", "1", "--save-steps", "1000"],
  ...more,
];

function sweepFile(root: string, adapters: Readonly<Record<string, Settings>>): string {
  const path = join(root, "adapters.yaml");
  writeFileSync(path, JSON.stringify(adapters));
  return path;
}

async function aloneInto(root: string, model: string, name: string, settings: Settings): Promise<string> {
  const dir = join(root, "alone", name);
  const { code, stderr } = await coordinator([...common(model), "--output-dir", dir, ...flagsOf(settings)]);
  assert.equal(code, 0, `${name}: ${stderr}`);
  return dir;
}

test("adapters that differ in everything: over 1, 2 and 4 workers each has the bits of its run alone", async (t) => {
  const root = temporaryFolder(t);
  const other = join(root, "other.jsonl");
  writeFileSync(other, `${rows.slice(3, 17).reverse().join("\n")}\n`);
  const data = join(folder, "data.jsonl");
  const adapters: Record<string, Settings> = {
    plain: { dataset: data, lora_r: 4, max_steps: 5, learning_rate: 2e-3 },
    dropped: {
      ...{ dataset: other, lora_r: 7, lora_alpha: 21, lora_dropout: 0.3, seed: 5, max_steps: 9 },
      ...{ lr_scheduler_type: "cosine", warmup_steps: 2, learning_rate: 5e-3, weight_decay: 0.1 },
    },
    "upper-layers": {
      ...{ dataset: data, target_modules: ["q_proj", "v_proj"], layers_to_transform: [2], lora_r: 16 },
      ...{ per_device_train_batch_size: 2, gradient_accumulation_steps: 3, max_steps: 4, data_seed: 11 },
    },
    judged: {
      ...{
        dataset: data,
        validation_split: 0.3,
        eval_strategy: "steps",
        eval_steps: 2,
        num_train_epochs: 2,
        use_rslora: true,
      },
      ...{ load_best_model_at_end: true, save_steps: 2, loraplus_lr_ratio: 4, label_smoothing_factor: 0.1 },
    },
    noisy: {
      ...{ dataset: other, neftune_noise_alpha: 3, lora_r: 2, max_steps: 1, train_sampling_strategy: "sequential" },
      ...{ micro_batch_tokens: 40, max_grad_norm: 0.05 },
    },
  };
  const file = sweepFile(root, adapters);
  const alone = Object.fromEntries(
    await Promise.all(
      Object.entries(adapters).map(async ([name, own]) => [name, await aloneInto(root, folder, name, own)] as const),
    ),
  );
  const shared = { "": 0, "model.layers.1": 1, "model.layers.2": 1, "model.norm": [1, 0], lm_head: [1, 0] };
  for (const [workers, ...flags] of [["1"], ["2", "--device-map", JSON.stringify(shared)], ["4"]] as const) {
    const output = join(root, `over-${workers}`);
    const run = [...common(folder), "--adapters", file, "--output-dir", output, "--workers", workers, ...flags];
    const { code, stdout, stderr } = await coordinator(run);
    assert.equal(code, 0, stderr);
    for (const name of Object.keys(adapters)) {
      const own = join(output, name);
      assert.deepEqual(adapterFile(own), adapterFile(alone[name]!), `${name} over ${workers}`);
      assert.deepEqual(logOf(own), logOf(alone[name]!), name);
      assert.ok(readFileSync(join(own, "metrics.jsonl"), "utf8").includes('"event":"end"'));
    }
    const ends = events(stdout, "end").map(({ adapter }) => adapter);
    assert.deepEqual(ends.sort(), Object.keys(adapters).sort());
  }
});

test("kinds of adapters side by side: what one trains of the base itself is not there for another", async (t) => {
  const root = temporaryFolder(t);
  const { folder: model } = goldenRun("qwen1");
  const dataset = join(model, "data.jsonl");
  const shared = { dataset, max_steps: 3, learning_rate: 1e-2, target_modules: ["c_attn", "w1"] };
  const adapters: Record<string, Settings> = {
    lora: shared,
    dora: { ...shared, use_dora: true, lora_dropout: 0.1 },
    biases: { ...shared, bias: "all", use_dora: true },
    "own-biases": { ...shared, bias: "lora_only", learning_rate: 3e-2 },
    whole: { ...shared, modules_to_save: ["wte", "lm_head"], lora_dropout: 0.2 },
    tokens: { ...shared, trainable_token_indices: { wte: [5, 110, 46] } },
    ends: { ...shared, target_modules: ["wte", "lm_head", "c_proj"] },
  };
  const file = sweepFile(root, adapters);
  const output = join(root, "together");
  const run = [
    ...common(model),
    "--adapters",
    file,
    "--output-dir",
    output,
    "--workers",
    "2",
    "--gradient-checkpointing",
  ];
  const [{ code, stderr }, ...alone] = await Promise.all([
    coordinator(run),
    ...Object.entries(adapters).map(([name, own]) => aloneInto(root, model, name, own)),
  ]);
  assert.equal(code, 0, stderr);
  for (const [index, name] of Object.keys(adapters).entries()) {
    assert.deepEqual(adapterFile(join(output, name)), adapterFile(alone[index]!), name);
  }
});

test("kinds that are mixed over a quantised base: the same bits over 1 and 2 workers, and resumed", async (t) => {
  const root = temporaryFolder(t);
  const shared = { dataset: join(folder, "data.jsonl"), max_steps: 3, learning_rate: 5e-3, lora_r: 3 };
  const targets = ["q_proj", "v_proj", "up_proj", "down_proj"];
  const adapters: Record<string, Settings> = {
    dora: { ...shared, use_dora: true, lora_dropout: 0.1, bias: "all", loraplus_lr_ratio: 8, target_modules: targets },
    ranks: { ...shared, use_rslora: true, rank_pattern: { q_proj: 5, "0.*up_proj": 17 }, alpha_pattern: { v_proj: 3 } },
    ends: { ...shared, use_dora: true, modules_to_save: ["lm_head"], target_modules: ["embed_tokens", "o_proj"] },
    rows: { ...shared, lora_dropout: 0.3, trainable_token_indices: [7, 3, 4], target_modules: ["k_proj", "down_proj"] },
  };
  const file = sweepFile(root, adapters);
  const over = async (base: string) => {
    const run = async (name: string, ...more: string[]) => {
      const flags = [
        `--load-in-${base}`,
        "--adapters",
        file,
        "--save-steps",
        "2",
        "--output-dir",
        join(root, base, name),
      ];
      const { code, stderr } = await coordinator([...common(folder), ...flags, ...more]);
      assert.equal(code, 0, stderr);
      return Object.keys(adapters).map((adapter) => adapterFile(join(root, base, name, adapter)));
    };
    const expected = await run("one", "--workers", "1");
    assert.deepEqual(await run("two", "--workers", "2", "--gradient-checkpointing"), expected);
    if (base === "8bit") return;
    for (const name of Object.keys(adapters))
      rmSync(join(root, base, "two", name, "checkpoint-3"), { recursive: true });
    assert.deepEqual(await run("two", "--workers", "2", "--resume-from-checkpoint"), expected);
  };
  await Promise.all(["4bit", "8bit"].map(over));
});

test("adapters that all begin with the same part of the base share the rest of it", async (t) => {
  const root = temporaryFolder(t);
  const begin = { init_lora_weights: "pissa", lora_r: 4, lora_alpha: 8, target_modules: ["q_proj", "down_proj"] };
  const shared = { ...begin, dataset: join(folder, "data.jsonl") };
  const adapters: Record<string, Settings> = {
    slow: { ...shared, max_steps: 5, learning_rate: 1e-4, lora_dropout: 0.2 },
    fast: { ...shared, max_steps: 3, learning_rate: 3e-3 },
  };
  const file = sweepFile(root, adapters);
  const output = join(root, "together");
  const run = [...common(folder, "--save-steps", "2"), "--adapters", file, "--output-dir", output, "--workers", "2"];
  const { code, stderr } = await coordinator(run);
  assert.equal(code, 0, stderr);
  rmSync(join(output, "slow", "adapter_model.safetensors"));
  const again = await coordinator([...run, "--resume-from-checkpoint"]);
  assert.equal(again.code, 0, again.stderr);
  for (const [name, own] of Object.entries(adapters)) {
    assert.deepEqual(adapterFile(join(output, name)), adapterFile(await aloneInto(root, folder, name, own)), name);
  }
});

test("one adapter's NaN ends it alone, with its code; the others go on, and the run says so", async (t) => {
  const root = temporaryFolder(t);
  const dataset = join(folder, "data.jsonl");
  const adapters: Record<string, Settings> = {
    good: { dataset, max_steps: 6, lora_dropout: 0.1 },
    wild: { dataset, max_steps: 6, learning_rate: 1e30, max_grad_norm: 0, save_steps: 1 },
    late: { dataset, max_steps: 8, lora_r: 3 },
  };
  const output = join(root, "run");
  const file = sweepFile(root, adapters);
  const run = [...common(folder), "--adapters", file, "--output-dir", output, "--workers", "2"];
  const { code, stdout, stderr } = await coordinator(run);
  assert.equal(code, 1);
  assert.match(
    stderr,
    /PL_ADAPTERS_FAILED.*1 of 3 adapters failed.*wild: PL_LOSS_NOT_FINITE: step \d, micro-batch \d/s,
  );
  assert.deepEqual(
    events(stdout, "failed").map(({ adapter, code: of }) => [adapter, of]),
    [["wild", "PL_LOSS_NOT_FINITE"]],
  );
  assert.ok(!existsSync(join(output, "wild", "adapter_model.safetensors")));
  assert.match(
    readFileSync(join(output, "wild", "metrics.jsonl"), "utf8"),
    /"event":"failed","code":"PL_LOSS_NOT_FINITE"/,
  );
  for (const name of ["good", "late"]) {
    assert.deepEqual(
      adapterFile(join(output, name)),
      adapterFile(await aloneInto(root, folder, name, adapters[name]!)),
      name,
    );
  }
  assert.deepEqual(processesMentioning(root), []);
});

test("a lost worker and an interrupt: each adapter goes on from its own last checkpoint, to the same bits", async (t) => {
  const root = temporaryFolder(t);
  const dataset = join(folder, "data.jsonl");
  const adapters: Record<string, Settings> = {
    often: { dataset, max_steps: 24, save_steps: 2, save_total_limit: 2, lora_dropout: 0.2 },
    seldom: { dataset, max_steps: 20, save_steps: 7, seed: 3 },
    brief: { dataset, max_steps: 4, lora_r: 2 },
  };
  const file = sweepFile(root, adapters);
  const flags = (output: string, ...more: string[]) => [
    ...[...common(folder), "--adapters", file, "--output-dir", output, "--workers", "2"],
    ...more,
  ];
  const whole = join(root, "whole");
  assert.equal((await coordinator(flags(whole))).code, 0);

  const output = join(root, "disturbed");
  const child = startCoordinator(flags(output));
  let killed = false;
  let interrupted = false;
  const first = await outcome(child, (text) => {
    if (!killed && text.includes('"adapter":"often","step":9,')) {
      killed = true;
      process.kill(childrenOf(child.pid!).at(-1)!, "SIGKILL");
    } else if (killed && !interrupted && text.includes('"adapter":"seldom","step":12,')) {
      interrupted = true;
      child.kill("SIGINT");
    }
  });
  assert.equal(first.code, 130, first.stderr);
  assert.match(first.stderr, /was lost.*going on from the last checkpoint/s);
  assert.match(first.stderr, /PL_INTERRUPTED.*step \d+ of often, step \d+ of seldom, which are saved/s);
  const again = await coordinator(flags(output, "--resume-from-checkpoint"));
  assert.equal(again.code, 0, again.stderr);
  for (const name of Object.keys(adapters)) {
    assert.deepEqual(adapterFile(join(output, name)), adapterFile(join(whole, name)), name);
    assert.deepEqual(logOf(join(output, name)), logOf(join(whole, name)), name);
  }
  const kept = readdirSync(join(output, "often")).filter((name) => name.startsWith("checkpoint-"));
  assert.deepEqual(kept.sort(), ["checkpoint-22", "checkpoint-24"]);
});

test("sweep writes the grid, trains it, and ranks it by its evaluations", async (t) => {
  const root = temporaryFolder(t);
  const output = join(root, "sweep");
  const grid = ["--learning-rate", "1e-4,2e-2", "--lora-r", "2,4", "--dataset", join(folder, "data.jsonl")];
  const run = ["sweep", ...common(folder), "--output-dir", output, "--max-steps", "4", "--validation-split", "0.25"];
  const flags = [...run, "--eval-strategy", "steps", "--eval-steps", "2", ...grid];
  const dry = await coordinator([...flags, "--dry-run"]);
  assert.equal(dry.code, 0, dry.stderr);
  assert.deepEqual(readdirSync(output), ["sweep.yaml"]);
  const { code, stdout, stderr } = await coordinator([...flags, "--workers", "2"]);
  assert.equal(code, 0, stderr);
  const { ranking } = readJson<{ ranking: { rank: number; name: string; best_eval_loss: number }[] }>(
    output,
    "sweep.json",
  );
  assert.deepEqual(
    ranking.map(({ rank }) => rank),
    [1, 2, 3, 4],
  );
  assert.deepEqual(ranking.map(({ name }) => name).sort(), [
    "learning_rate-1e-4_lora_r-2",
    "learning_rate-1e-4_lora_r-4",
    "learning_rate-2e-2_lora_r-2",
    "learning_rate-2e-2_lora_r-4",
  ]);
  for (const { name, best_eval_loss: best } of ranking) {
    const losses = stateOf(join(output, name)).log_history.flatMap(({ eval_loss: loss }) =>
      loss === undefined ? [] : [loss],
    );
    assert.equal(best, Math.min(...losses));
  }
  assert.ok(ranking.every(({ best_eval_loss: best }, at) => at === 0 || best >= ranking[at - 1]!.best_eval_loss));
  assert.equal(events(stdout, "ranking").length, 1);
  assert.match(readFileSync(join(output, "sweep.txt"), "utf8"), /learning_rate +lora_r +best eval_loss/);
});
