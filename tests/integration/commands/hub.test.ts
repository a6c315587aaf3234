import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import {
  coordinator,
  events,
  outcome,
  readJson,
  startCoordinator,
  temporaryFolder,
} from "../../support/processes/cli.ts";
import { LoopbackHub } from "../../support/processes/hub.ts";
import { freePort } from "../../support/processes/ports.ts";

const MODEL = "tests/tiny-llama";
const ROWS = "tests/rows";
const CONFIG = {
  ...{
    model_type: "llama",
    architectures: ["LlamaForCausalLM"],
    hidden_size: 64,
    intermediate_size: 128,
    rms_norm_eps: 1e-6,
  },
  ...{
    num_hidden_layers: 10,
    num_attention_heads: 4,
    vocab_size: 300,
    max_position_embeddings: 512,
    torch_dtype: "float32",
  },
};
const rows = (count: number, from: number) =>
  Array.from({ length: count }, (_, row) => {
    const ids = Array.from({ length: 5 + ((row + from) % 7) }, (_, at) => (row * 13 + at * 7 + from) % 300);
    return `${JSON.stringify({ input_ids: ids })}\n`;
  }).join("");

interface Setup {
  readonly hub: LoopbackHub;
  readonly root: string;
  /** The same model and rows in folders. */
  readonly folder: string;
  readonly data: string;
  environment(cache: string): Record<string, string>;
}

async function setUp(t: TestContext): Promise<Setup> {
  const root = temporaryFolder(t);
  const folder = join(root, "model");
  writeFileSync(join(root, "config.json"), JSON.stringify(CONFIG));
  const made = await coordinator([
    ...["init-model", "--config", join(root, "config.json"), "--output-dir", folder, "--max-shard-size", "200KB"],
  ]);
  assert.equal(made.code, 0, made.stderr);
  const data = join(root, "train.jsonl");
  writeFileSync(data, rows(24, 0));
  const hub = await LoopbackHub.start(t);
  hub.addFolder("model", MODEL, folder);
  hub.add("dataset", ROWS, { "train.jsonl": readFileSync(data), "test.jsonl": rows(5, 3) });
  const environment = (cache: string) => ({
    ...{ HF_ENDPOINT: hub.endpoint, HF_HOME: join(root, cache), HF_TOKEN: "", HF_HUB_OFFLINE: "" },
    ...{ HF_HUB_CACHE: "", HUGGINGFACE_HUB_CACHE: "", TRANSFORMERS_OFFLINE: "" },
  });
  return { hub, root, folder, data, environment };
}

const flags = (model: string, dataset: string, output: string) => [
  ...["--model", model, "--dataset", dataset, "--output-dir", output, "--workers", "2", "--num-train-epochs", "2"],
  ...["--per-device-train-batch-size", "4", "--logging-steps", "1", "--lora-dropout", "0.1"],
];
const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

test("named model and rows: killed in the middle of the weights, gone on with, offline afterwards, the bits of folders", async (t) => {
  const { hub, root, folder, data, environment } = await setUp(t);
  const alone = join(root, "alone");
  assert.equal((await coordinator(flags(folder, data, alone))).code, 0);

  const weights = readdirSync(folder).filter((name) => name.endsWith(".safetensors"));
  assert.ok(weights.length > 2, weights.join());
  hub.faults.push({ when: ({ host }) => host === "storage", times: 4, stallAfter: 1 << 14 });
  const first = startCoordinator(flags(MODEL, `${ROWS}:train`, join(root, "first")), environment("cache"));
  const killed = outcome(first);
  const blobs = join(root, "cache", "hub", `models--${MODEL.replace("/", "--")}`, "blobs");
  const incomplete = () => (existsSync(blobs) ? readdirSync(blobs).filter((name) => name.endsWith(".incomplete")) : []);
  for (let waited = 0; incomplete().every((name) => statSync(join(blobs, name)).size === 0); waited++) {
    assert.ok(waited < 300, "the weights begin within 30 s");
    await delay(100);
  }
  await delay(300);
  first.kill("SIGKILL");
  await killed;
  // Rows were read, and found good, before the first weight.
  const order = hub.downloads();
  assert.ok(
    order.findIndex((path) => path.endsWith("train.jsonl")) < order.findIndex((path) => path.endsWith(".safetensors")),
  );
  assert.ok(!order.some((path) => path.endsWith("test.jsonl")));

  const before = hub.requests.length;
  const output = join(root, "named");
  const second = await outcome(startCoordinator(flags(MODEL, `${ROWS}:train`, output), environment("cache")));
  assert.equal(second.code, 0, second.stderr);
  assert.deepEqual(adapter(output), adapter(alone));
  const resumed = hub.requests.slice(before).filter(({ range }) => range !== null);
  assert.ok(resumed.length > 0 && resumed.every(({ range }) => range !== "bytes=0-"), "the rest alone is asked for");
  assert.match(second.stderr, /fetched tests\/tiny-llama/);
  assert.equal(readJson(output, "adapter_config.json")["base_model_name_or_path"], MODEL);

  hub.stop();
  const offline = join(root, "offline");
  const third = await outcome(
    startCoordinator(flags(MODEL, `${ROWS}:train`, offline), { ...environment("cache"), HF_HUB_OFFLINE: "1" }),
  );
  assert.equal(third.code, 0, third.stderr);
  assert.deepEqual(adapter(offline), adapter(alone));
  const named = await outcome(
    startCoordinator(["download", MODEL, "--json"], { ...environment("cache"), TRANSFORMERS_OFFLINE: "1" }),
  );
  assert.ok(existsSync(join((JSON.parse(named.stdout) as { dir: string }).dir, "config.json")), named.stderr);
});

test("bad configurations and rows are found before a weight is fetched; a folder of the name wins", async (t) => {
  const { hub, root, folder, environment } = await setUp(t);
  const run = (args: string[]) => outcome(startCoordinator(args, environment("cache")));
  hub.add("dataset", "tests/bad", { "train.jsonl": '{"instruction": "no answer"}\n' });
  const bad = await run(flags(MODEL, "tests/bad", join(root, "out")));
  assert.equal(bad.code, 1);
  assert.match(bad.stderr, /PL_DATASET_INVALID.*row 1 lacks "output"/);
  hub.add("model", "tests/other", {
    "config.json": JSON.stringify({ ...CONFIG, model_type: "mamba" }),
    "model.safetensors": "x".repeat(9999),
  });
  const other = await run(flags("tests/other", ROWS, join(root, "out")));
  assert.match(other.stderr, /PL_MODEL_UNSUPPORTED/);
  assert.ok(!hub.downloads().some((path) => /safetensors$|^\/lfs/.test(path)), hub.downloads().join());
  const missing = await run(["plan", "--model", "tests/none"]);
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /PL_HUB_DENIED/);
  const split = await run(flags(MODEL, `${ROWS}:validation`, join(root, "out")));
  assert.match(split.stderr, /PL_HUB_NOT_FOUND.*no split "validation"; it has "train", "test"/);
  const asked = hub.requests.length;
  const local = await run(["parameters", "--model", folder, "--json"]);
  assert.equal(local.code, 0, local.stderr);
  assert.equal(hub.requests.length, asked);
});

test("several sets: shares in the log, a list of one is the plain form", async (t) => {
  const { root, folder, data } = await setUp(t);
  const other = join(root, "b, with a comma.jsonl");
  writeFileSync(other, rows(8, 5));
  const train = async (name: string, dataset: string | object[], ...more: string[]) => {
    const output = join(root, name);
    const config = join(root, `${name}.yaml`);
    writeFileSync(config, JSON.stringify(typeof dataset === "string" ? {} : { dataset }));
    const args = flags(folder, "", output).filter(
      (flag, at, all) => flag !== "--dataset" && all[at - 1] !== "--dataset",
    );
    const given = typeof dataset === "string" ? ["--dataset", dataset] : [];
    const result = await coordinator([...args, ...given, "--config", config, "--json", "--log-level", "info", ...more]);
    assert.equal(result.code, 0, result.stderr);
    return { output, result };
  };
  const plain = await train("plain", data);
  assert.deepEqual(adapter((await train("one", [{ path: data }])).output), adapter(plain.output));
  const both = await train("both", `${data},${other}`);
  assert.match(both.result.stderr, /train\.jsonl: 24 rows: 75\.0 % of an epoch's rows/);
  assert.match(both.result.stderr, /with a comma\.jsonl: 8 rows: 25\.0 %/);
  const sets = [
    { path: data, weight: 1 },
    { path: other, weight: 1, rows: 6 },
  ];
  const weighted = await train("weighted", sets);
  assert.match(weighted.result.stderr, /with a comma\.jsonl: 6 rows, each 4\.00 times: 50\.0 %/);
  assert.equal(events(weighted.result.stdout, "log").filter((entry) => "loss" in entry).length, 24);
  const alike = await train("alike", sets, "--workers", "1");
  assert.deepEqual(adapter(alike.output), adapter(weighted.output));
});

const noMounts = spawnSync("unshare", ["-rm", "true"]).status === 0 ? false : "this system lets no test hide a folder";

test("a worker of another node fetches what holds its own tensors into its own cache", {
  skip: noMounts,
}, async (t) => {
  const { hub, root, folder, data, environment } = await setUp(t);
  const alone = join(root, "alone");
  assert.equal((await coordinator(flags(folder, data, alone))).code, 0);
  const fetchedFirst = await outcome(startCoordinator(["download", MODEL], environment("head")));
  assert.equal(fetchedFirst.code, 0, fetchedFirst.stderr);
  const port = await freePort();
  const output = join(root, "out");
  const others = flags(MODEL, data, output).filter(
    (flag, at, all) => flag !== "--workers" && all[at - 1] !== "--workers",
  );
  const run = outcome(
    startCoordinator(
      [...others, "--listen", `127.0.0.1:${port}`, "--nnodes", "2", "--link", "grpc", "--device-map", "balanced"],
      environment("head"),
    ),
  );
  const workers = ["n1", "n2"].map((name) => {
    const program = join(PACKAGE_ROOT, "dist", "cli", "worker.js");
    const args = ["--coordinator", `127.0.0.1:${port}`, "--node-name", name, "--devices", "cpu", "--threads", "1"];
    // The coordinator's cache is no folder of this node.
    const hidden = `mount -t tmpfs none '${join(root, "head")}' && exec "$@"`;
    return outcome(
      spawn("unshare", ["-rm", "sh", "-c", hidden, "sh", process.execPath, program, ...args], {
        stdio: ["pipe", "pipe", "pipe"],
        env: { ...process.env, ...environment(name) },
      }),
    );
  });
  const result = await run;
  assert.equal(result.code, 0, result.stderr);
  for (const worker of workers) assert.equal((await worker).code, 0, (await worker).stderr);
  assert.deepEqual(adapter(output), adapter(alone));
  const shards = (name: string) => {
    const snapshots = join(root, name, "hub", `models--${MODEL.replace("/", "--")}`, "snapshots");
    return readdirSync(join(snapshots, readdirSync(snapshots)[0]!)).filter((file) => file.endsWith(".safetensors"));
  };
  // Timing takes a block and the head beside its own: the rest of the other half is never asked for.
  const all = shards("head").length;
  for (const name of ["n1", "n2"]) assert.ok(shards(name).length > 0 && shards(name).length < all, shards(name).join());
  assert.ok(hub.requests.length > 0);
  rmSync(root, { recursive: true, force: true });
});
