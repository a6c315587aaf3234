import assert from "node:assert/strict";
import { relative } from "node:path";
import { type TestContext, test } from "node:test";
import { holdsRows } from "../../../src/data/readers/read.ts";
import { fetchSplit } from "../../../src/hub/dataset-files.ts";
import { fetchAdapter, fetchModelConfig, fetchTokenizer, fetchWeights } from "../../../src/hub/model-files.ts";
import { parseDatasetReference, type RepoKind } from "../../../src/hub/reference.ts";
import { hubSettings } from "../../../src/hub/settings.ts";
import { Snapshot } from "../../../src/hub/snapshot.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";
import { LoopbackHub } from "../../support/processes/hub.ts";

type Files = Readonly<Record<string, string>>;

async function snapshotOf(
  t: TestContext,
  kind: RepoKind,
  files: Files,
): Promise<{ hub: LoopbackHub; snapshot: Snapshot }> {
  const hub = await LoopbackHub.start(t);
  hub.add(kind, "o/n", files);
  const environment = { HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: temporaryFolder(t) };
  const snapshot = await Snapshot.open(
    { kind, name: "o/n", revision: null },
    {
      settings: await hubSettings("huggingface", environment),
      progress: () => ({ add: () => {}, end: () => {} }),
      warn: () => {},
    },
  );
  return { hub, snapshot };
}

function fetched(hub: LoopbackHub): string[] {
  return hub
    .downloads()
    .map((path) => path.split("/resolve/")[1])
    .filter((path) => path !== undefined)
    .map((path) => path.slice(41));
}

const card = (yaml: string) => `---\nlicense: mit\n${yaml}\n---\n# Rows\n`;

/** What of a repository is a split, after the hub's rules. */
const SPLITS: readonly [string, readonly string[], Files, readonly string[] | RegExp][] = [
  [
    "sharded",
    [":train", ""],
    {
      "data/train-00001-of-00002.parquet": "b",
      "data/train-00000-of-00002.parquet": "a",
      "data/test-00000-of-00001.parquet": "c",
      "train.jsonl": "x",
    },
    ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
  ],
  [
    "a hash in the name",
    [""],
    { "data/train-00000-of-00001-a09b74b3.parquet": "a" },
    ["data/train-00000-of-00001-a09b74b3.parquet"],
  ],
  [
    "file names",
    [":validation"],
    { "train.jsonl": "a", "dev.jsonl": "b", "my_val_set.jsonl": "c", "evaluation.jsonl": "d" },
    ["dev.jsonl", "my_val_set.jsonl"],
  ],
  ["folders", [":test"], { "training/a.csv": "1", "test/b.csv": "2", "test/a.csv": "3" }, ["test/a.csv", "test/b.csv"]],
  ["no word within a word", [""], { "constrained.jsonl": "a", "b.jsonl": "b" }, ["b.jsonl", "constrained.jsonl"]],
  [
    "all else is train",
    ["", ":train"],
    { "huanhuan.json": "[]", ".gitattributes": "x", "README.md": "# hi", "dataset_infos.json": "{}" },
    ["huanhuan.json"],
  ],
  [
    "the card's default",
    [""],
    {
      "a.jsonl": "1",
      "b.jsonl": "2",
      "README.md": card(
        "configs:\n- config_name: x\n  data_files: a.jsonl\n- config_name: y\n  default: true\n  data_files: b.jsonl",
      ),
    },
    ["b.jsonl"],
  ],
  [
    "the card's named configuration",
    [":x/train", ":x/train@main"],
    {
      "a.jsonl": "1",
      "b.jsonl": "2",
      "README.md": card(
        "configs:\n- config_name: x\n  data_files: a.jsonl\n- config_name: default\n  data_files: b.jsonl",
      ),
    },
    ["a.jsonl"],
  ],
  [
    "splits with patterns",
    [":test"],
    {
      "d/1.jsonl": "1",
      "d/e/2.jsonl": "2",
      "d/3.csv": "3",
      "README.md": card(
        'configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: d/*.csv\n  - split: test\n    path: ["d/**/*.jsonl"]',
      ),
    },
    ["d/1.jsonl", "d/e/2.jsonl"],
  ],
  [
    "a card's folder",
    [""],
    { "x/train.csv": "1", "y/train.csv": "2", "README.md": card("configs:\n- config_name: default\n  data_dir: y") },
    ["y/train.csv"],
  ],
  ["a card without configurations", [""], { "train.jsonl": "1", "README.md": card("tags: [a]") }, ["train.jsonl"]],
  [
    "several, none the default",
    [""],
    {
      "a.jsonl": "1",
      "README.md": card("configs:\n- config_name: x\n  data_files: a.jsonl\n- config_name: y\n  data_files: a.jsonl"),
    },
    /"x", "y"/,
  ],
  ["no such split", [":test"], { "train.jsonl": "1" }, /no split "test"; it has "train"/],
  ["no such configuration", [":z/train"], { "train.jsonl": "1" }, /no configuration "z"/],
  ["nothing to read", [""], { "script.py": "1", "data.zip": "2" }, /no split "train"/],
  ["a card that is no YAML", [""], { "train.jsonl": "1", "README.md": card("configs: [") }, /no YAML/],
  [
    "a split in a file that can't be read",
    [""],
    { "train.zip": "1", "README.md": card("configs:\n- config_name: default\n  data_files: train.zip") },
    /train\.zip, which can't be read/,
  ],
];

for (const [what, suffixes, files, expected] of SPLITS) {
  test(`split: ${what}`, async (t) => {
    for (const suffix of suffixes) {
      const { hub, snapshot } = await snapshotOf(t, "dataset", files);
      const found = fetchSplit(snapshot, parseDatasetReference(`o/n${suffix}`)!, holdsRows);
      if (expected instanceof RegExp) {
        await assert.rejects(found, { code: "PL_HUB_NOT_FOUND", message: expected });
        continue;
      }
      assert.deepEqual(
        (await found).map((path) => relative(snapshot.dir, path)),
        expected,
      );
      assert.deepEqual(
        fetched(hub)
          .filter((path) => path !== "README.md")
          .sort(),
        [...expected].sort(),
        "nothing else is fetched",
      );
    }
  });
}

const INDEX = JSON.stringify({
  weight_map: {
    "model.embed_tokens.weight": "model-1.safetensors",
    "model.layers.0.mlp.up_proj.weight": "model-1.safetensors",
    "model.layers.1.mlp.up_proj.weight": "model-2.safetensors",
    "model.layers.1.mlp.up_proj.weight.absmax": "model-3.safetensors",
    "model.layers.10.mlp.up_proj.weight": "model-4.safetensors",
  },
});
const MODEL: Files = {
  "config.json": "{}",
  "generation_config.json": '{"generation_config": 1}',
  "tokenizer.json": '{"tokenizer": 1}',
  "tokenizer_config.json": '{"tokenizer_config": 1}',
  "chat_template.jinja": "x",
  "modeling_x.py": "pass",
  "model.safetensors.index.json": INDEX,
  ...Object.fromEntries([1, 2, 3, 4].map((shard) => [`model-${shard}.safetensors`, `${shard}`])),
  "pytorch_model.bin": "pickle",
  "x.gguf": "g",
  "original/consolidated.safetensors": "o",
  "README.md": "r",
  LICENSE: "l",
};

test("of a model what is needed, the configuration first and the weights last", async (t) => {
  const { hub, snapshot } = await snapshotOf(t, "model", MODEL);
  await fetchModelConfig(snapshot);
  assert.deepEqual(fetched(hub).sort(), ["config.json", "generation_config.json"]);
  await fetchTokenizer(snapshot);
  await fetchWeights(snapshot);
  const not = ["pytorch_model.bin", "x.gguf", "original/consolidated.safetensors", "README.md", "LICENSE"];
  assert.deepEqual(
    fetched(hub).sort(),
    Object.keys(MODEL)
      .filter((path) => !not.includes(path))
      .sort(),
  );
});

for (const [name, shards] of [
  ["model.embed_tokens.weight", [1]],
  ["model.layers.1.mlp.up_proj.weight", [2, 3]],
  ["model.layers.10.mlp.up_proj.weight", [4]],
] as const) {
  test(`a rank that holds ${name} fetches the files that hold it`, async (t) => {
    const { hub, snapshot } = await snapshotOf(t, "model", MODEL);
    await fetchWeights(snapshot, [name]);
    assert.deepEqual(
      fetched(hub).slice(1).sort(),
      shards.map((shard) => `model-${shard}.safetensors`),
    );
  });
}

test("what can't be used is told before it is fetched, with the way out", async (t) => {
  for (const [files, hint] of [
    [{ "config.json": "{}", "pytorch_model.bin": "x" }, /pickles/],
    [{ "config.json": "{}", "q4.gguf": "x" }, /GGUF/],
    [{ "adapter_config.json": "{}", "adapter_model.safetensors": "x" }, /--adapter/],
  ] as const) {
    const { hub, snapshot } = await snapshotOf(t, "model", files);
    await assert.rejects(
      fetchModelConfig(snapshot).then(() => fetchWeights(snapshot)),
      { code: "PL_HUB_NOT_FOUND", hint },
    );
    assert.ok(!fetched(hub).some((path) => /bin|gguf|safetensors/.test(path)));
  }
  const { snapshot } = await snapshotOf(t, "model", { "adapter_config.json": "{}", "adapter_model.bin": "x" });
  await assert.rejects(fetchAdapter(snapshot), { code: "PL_HUB_NOT_FOUND", hint: /pickles/ });
});
