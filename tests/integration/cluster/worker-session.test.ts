import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { coordinator, outcome, startCoordinator, startWorker, temporaryFolder } from "../../support/processes/cli.ts";
import { freePort } from "../../support/processes/ports.ts";

/** Some 200 million parameters: a shard of half of them takes a while to load and weighs more than the process. */
const CONFIG = {
  architectures: ["Qwen2ForCausalLM"],
  model_type: "qwen2",
  hidden_size: 1024,
  intermediate_size: 4096,
  num_hidden_layers: 12,
  num_attention_heads: 8,
  num_key_value_heads: 8,
  vocab_size: 1000,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-6,
  tie_word_embeddings: false,
  torch_dtype: "bfloat16",
  eos_token_id: 1,
};

/** Memory of a process that is backed by no file, in MiB. */
function anonymousMiB(pid: number): number {
  try {
    return Number(/^RssAnon:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) / 1024;
  } catch {
    return 0;
  }
}

/** Two nodes of one device each. `disturb` gets the first node, once it loads, and a way to replace the second. */
async function run(
  t: TestContext,
  { model, data, output }: { readonly model: string; readonly data: string; readonly output: string },
  disturb: (first: ReturnType<typeof startWorker>, replaceSecond: () => void) => void,
) {
  const address = `127.0.0.1:${await freePort()}`;
  const flags = ["--coordinator", address, "--devices", "cpu", "--threads", "1", "--log-level", "debug"];
  const start = (name: string) => {
    const worker = startWorker([...flags, "--node-name", name]);
    t.after(() => worker.kill("SIGKILL"));
    return worker;
  };
  const [first, second] = [start("n0"), start("n1")];
  let log = "";
  let disturbed = false;
  let peak = 0;
  const sampling = setInterval(() => {
    peak = Math.max(peak, anonymousMiB(first.pid!));
  }, 10);
  t.after(() => clearInterval(sampling));
  first.stderr.on("data", (chunk: Buffer) => {
    log += chunk.toString();
    if (disturbed || !log.includes("loading the shard")) return;
    disturbed = true;
    disturb(first, () => {
      second.kill("SIGKILL");
      start("n1");
    });
  });
  const { code, stderr } = await outcome(
    startCoordinator([
      ...["--model", model, "--dataset", data, "--output-dir", output, "--device-map", "balanced"],
      ...["--listen", address, "--nnodes", "2", "--max-steps", "2", "--seed", "11", "--log-level", "warn"],
    ]),
  );
  clearInterval(sampling);
  return { code, stderr, log, peak };
}

test("a rank that is sent away while it loads gives its engine back first, and its next session has the same bits", async (t) => {
  const root = temporaryFolder(t);
  const place = { model: join(root, "model"), data: join(root, "rows.jsonl") };
  writeFileSync(join(root, "config.json"), JSON.stringify(CONFIG));
  writeFileSync(place.data, `${JSON.stringify({ input_ids: [5, 6, 7, 8, 9, 10] })}\n`.repeat(4));
  const made = await coordinator([
    ...["init-model", "--config", join(root, "config.json"), "--seed", "3", "--output-dir", place.model],
  ]);
  assert.equal(made.code, 0, made.stderr);
  const calm = await run(t, { ...place, output: join(root, "calm") }, () => {});
  assert.equal(calm.code, 0, calm.stderr);

  // The first node stands still in the middle of loading, until the run has given the attempt up without it.
  const disturbed = await run(t, { ...place, output: join(root, "disturbed") }, (first, replaceSecond) => {
    first.kill("SIGSTOP");
    replaceSecond();
    setTimeout(() => first.kill("SIGCONT"), 1_000);
  });
  assert.equal(disturbed.code, 0, disturbed.stderr);
  assert.match(disturbed.stderr, /was lost.*restart 1 of/s);
  assert.match(disturbed.log, /prepare failed: the session with the coordinator ended/);
  assert.equal(disturbed.log.split("loading the shard").length - 1, 2);
  assert.ok(
    disturbed.peak < calm.peak * 1.3,
    `${Math.round(disturbed.peak)} MiB at most, ${Math.round(calm.peak)} MiB in a calm run`,
  );
  const [a, b] = ["calm", "disturbed"].map((name) => readFileSync(join(root, name, "adapter_model.safetensors")));
  assert.deepEqual(a, b);
  t.diagnostic(`peak ${Math.round(calm.peak)} MiB calm, ${Math.round(disturbed.peak)} MiB disturbed`);
});
