import assert from "node:assert/strict";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { pushAdapter } from "../../../src/coordinator/tools/push.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";
import { LoopbackHub } from "../../support/processes/hub.ts";

const GOLDEN = join(PACKAGE_ROOT, "tests/fixtures/goldens/qwen2-gqa-tied/adapter_final");

function environment(t: TestContext, values: Readonly<Record<string, string>>): void {
  const before = { ...process.env };
  t.after(() => {
    process.env = before;
  });
  process.env = { ...process.env, HF_HUB_OFFLINE: "", TRANSFORMERS_OFFLINE: "", HF_TOKEN: "hf_writer", ...values };
}

function adapter(t: TestContext): string {
  const dir = join(temporaryFolder(t), "out");
  cpSync(GOLDEN, dir, { recursive: true });
  const config = JSON.parse(readFileSync(join(dir, "adapter_config.json"), "utf8")) as Record<string, unknown>;
  const named = { ...config, base_model_name_or_path: "Qwen/Qwen2.5-0.5B" };
  writeFileSync(join(dir, "adapter_config.json"), JSON.stringify(named));
  writeFileSync(join(dir, "tokenizer.json"), "{}");
  writeFileSync(join(dir, "notes.txt"), "not to be pushed");
  for (const [step, rate] of [
    [5, 0.5],
    [10, 0.001],
  ] as const) {
    const checkpoint = join(dir, `checkpoint-${step}`);
    mkdirSync(checkpoint);
    const args = {
      dataset: ["tatsu-lab/alpaca", "/home/me/own.jsonl"],
      learning_rate: rate,
      load_in_4bit: true,
      seed: 7,
    };
    writeFileSync(join(checkpoint, "training_args.json"), JSON.stringify(args));
    const logs = [
      { step: 1, loss: 3.5 },
      { step, loss: 1.25 },
      { step, eval_loss: 1.5 },
    ];
    const state = { global_step: step, epoch: 2, log_history: logs, best_metric: 1.5, best_global_step: step };
    writeFileSync(join(checkpoint, "trainer_state.json"), JSON.stringify(state));
  }
  return dir;
}

const asked = (name: string, dir: string) => ({ name, adapter: dir, private: true, commit_message: null });

test("an adapter goes to a new repository, with a card of base, data, settings and results; again it makes a commit", async (t) => {
  const hub = await LoopbackHub.start(t);
  environment(t, { HF_ENDPOINT: hub.endpoint });
  const dir = adapter(t);
  const { files, url, commit } = await pushAdapter(asked("me/first", dir));
  assert.equal(url, `${hub.endpoint}/me/first`);
  assert.match(commit, /^[0-9a-f]{40}$/);
  assert.deepEqual(hub.created, [{ name: "me/first", visibility: "private" }]);
  const pushed = hub.pushed("me/first")!;
  assert.deepEqual([...pushed.keys()].sort(), [...files].sort());
  assert.ok(!files.includes("notes.txt"));
  for (const file of ["adapter_model.safetensors", "adapter_config.json"]) {
    assert.deepEqual(pushed.get(file), readFileSync(join(dir, file)));
  }
  const card = pushed.get("README.md")!.toString();
  assert.match(card, /^---\nbase_model: "Qwen\/Qwen2\.5-0\.5B"\ndatasets:\n- "tatsu-lab\/alpaca"\nlibrary_name: peft/);
  // Of the newest checkpoint; a path of somebody's machine stays there.
  assert.match(card, /\| learning_rate \| 0\.001 \|/);
  assert.match(card, /`own\.jsonl`, a file/);
  assert.doesNotMatch(card, /home\/me/);
  assert.match(card, /\| loss at the last log \| 1\.25 \|\n\| loss at the last evaluation \| 1\.5 \|/);
  await pushAdapter({ ...asked("me/first@trial", dir), commit_message: "Second" });
  assert.ok(hub.pushed("me/first", "trial")!.has("README.md"));
});

test("a folder with nothing but the adapter gets a card that says so", async (t) => {
  const hub = await LoopbackHub.start(t);
  environment(t, { HF_ENDPOINT: hub.endpoint });
  await pushAdapter(asked("me/bare", GOLDEN));
  assert.match(
    hub.pushed("me/bare")!.get("README.md")!.toString(),
    /## Settings\n\nNot said\.\n\n## Results\n\nNot said\./,
  );
});

test("no token, another's token, no adapter, no name, offline: said before anything is made", async (t) => {
  const hub = await LoopbackHub.start(t);
  const dir = adapter(t);
  const refused = async (values: Readonly<Record<string, string>>, name: string, code: string, folder = dir) => {
    environment(t, { HF_ENDPOINT: hub.endpoint, HF_HOME: dir, ...values });
    await assert.rejects(pushAdapter(asked(name, folder)), { code });
  };
  await refused({ HF_TOKEN: "" }, "me/x", "PL_HUB_DENIED");
  await refused({ HF_TOKEN: "hf_reader" }, "me/x", "PL_HUB_DENIED");
  await refused({ HF_HUB_OFFLINE: "1" }, "me/x", "PL_HUB_OFFLINE");
  await refused({}, "no owner", "PL_CONFIG_INVALID");
  await refused({}, "ownerless", "PL_CONFIG_INVALID");
  await refused({}, "me/x", "PL_ADAPTER_INVALID", join(dir, "checkpoint-5"));
  assert.deepEqual(hub.created, []);
});
