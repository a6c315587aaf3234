import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { pathsOf } from "../../../src/coordinator/planning/row-sets.ts";
import { parseDatasetReference, parseReference } from "../../../src/hub/reference.ts";
import { hubSettings } from "../../../src/hub/settings.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

test("a name is owner/name; what else there is can only be a path", () => {
  for (const [text, name, revision] of [
    ["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct", null],
    ["a/b@main", "a/b", "main"],
    ["a/b@refs/pr/1", "a/b", "refs/pr/1"],
    ["0_x/y.z@v1.0", "0_x/y.z", "v1.0"],
    ["gpt2", "gpt2", null],
    ["bert-base-uncased@main", "bert-base-uncased", "main"],
  ] as const) {
    assert.deepEqual(parseReference(text), { kind: "model", name, revision });
  }
  const paths = [
    "./a/b",
    "../a",
    "/a/b",
    "~/a",
    "a.json",
    "-a",
    "a/b/c",
    "a/",
    "/b",
    "a/b@",
    "a/b@..",
    "a/b@x/../y",
    "a/-b",
    "a/b.",
    "a//b",
    "a\\b",
    "",
    "a/b c",
    "a/b--c",
    `a/${"b".repeat(100)}`,
    "C:/models",
  ];
  for (const path of paths) assert.equal(parseReference(path), null, path);
});

test("a data set's split, configuration and revision come in either order", () => {
  const parsed = (text: string) => {
    const found = parseDatasetReference(text);
    return found === null ? null : [found.name, found.config, found.split, found.revision];
  };
  assert.deepEqual(parsed("a/b"), ["a/b", null, null, null]);
  assert.deepEqual(parsed("a/b:test"), ["a/b", null, "test", null]);
  assert.deepEqual(parsed("a/b:en/test@v1"), ["a/b", "en", "test", "v1"]);
  assert.deepEqual(parsed("a/b@v1:en/test"), ["a/b", "en", "test", "v1"]);
  assert.deepEqual(parsed("squad:train"), ["squad", null, "train", null]);
  for (const text of ["a/b:", "a/b:x:y", "a/b@x@y", "a.b:c", "./a/b:train", "C:/rows", "a/b:../x"])
    assert.equal(parsed(text), null, text);
});

test("the environment as huggingface_hub reads it", async (t) => {
  const home = temporaryFolder(t);
  const of = (environment: Record<string, string>) => hubSettings("huggingface", environment);
  assert.equal((await of({})).cacheDir, join(homedir(), ".cache/huggingface/hub"));
  assert.equal((await of({ XDG_CACHE_HOME: "/x" })).cacheDir, "/x/huggingface/hub");
  assert.equal((await of({ XDG_CACHE_HOME: "/x", HF_HOME: "/h" })).cacheDir, "/h/hub");
  assert.equal((await of({ HF_HOME: "/h", HUGGINGFACE_HUB_CACHE: "/old" })).cacheDir, "/old");
  assert.equal((await of({ HUGGINGFACE_HUB_CACHE: "/old", HF_HUB_CACHE: "/new" })).cacheDir, "/new");
  assert.equal((await of({ HF_HOME: "", HF_HUB_CACHE: "~/c" })).cacheDir, join(homedir(), "c"));
  assert.equal((await of({})).endpoint, "https://huggingface.co");
  assert.equal((await of({ HF_ENDPOINT: "https://mirror.example/" })).endpoint, "https://mirror.example");
  for (const value of ["1", "ON", "yes", "True"]) {
    assert.ok((await of({ HF_HUB_OFFLINE: value })).offline);
    assert.ok((await of({ TRANSFORMERS_OFFLINE: value })).offline);
  }
  for (const value of ["0", "", "no", "off"]) assert.ok(!(await of({ HF_HUB_OFFLINE: value })).offline);
  assert.equal((await of({ HF_HOME: home })).token, null);
  writeFileSync(join(home, "token"), "hf_file\n");
  assert.equal((await of({ HF_HOME: home })).token, "hf_file");
  assert.equal((await of({ HF_HOME: home, HF_TOKEN: "hf_own" })).token, "hf_own");
  mkdirSync(join(home, "other"));
  writeFileSync(join(home, "other", "t"), " hf_path ");
  assert.equal((await of({ HF_HOME: home, HF_TOKEN_PATH: join(home, "other", "t") })).token, "hf_path");
});

test("a list of files is split at commas, save those of names that are there", () => {
  const split = (text: string, ...files: string[]) => pathsOf(text, (path) => files.includes(path));
  assert.deepEqual(split("a.jsonl"), ["a.jsonl"]);
  assert.deepEqual(split("a.jsonl, b.parquet"), ["a.jsonl", "b.parquet"]);
  assert.deepEqual(split("a,b.jsonl", "a,b.jsonl"), ["a,b.jsonl"]);
  assert.deepEqual(split("x.csv,a,b.jsonl,y.csv", "a,b.jsonl", "y.csv"), ["x.csv", "a,b.jsonl", "y.csv"]);
  assert.deepEqual(split("a/b:train,c.json,"), ["a/b:train", "c.json"]);
  const name = fc.stringMatching(/^[a-c,]{1,6}$/).filter((text) => !/^,|,$/.test(text));
  fc.assert(
    fc.property(fc.array(name, { minLength: 1, maxLength: 1 }), (files) => {
      assert.deepEqual(split(files.join(","), ...files), files);
    }),
  );
});
