import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { loadConfig } from "../../../src/config/load.ts";
import { ChatTemplate } from "../../../src/data/chat-template.ts";
import { readRows } from "../../../src/data/readers/read.ts";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const FIXTURES = join(PACKAGE_ROOT, "tests", "fixtures");
const TOKENS = join(FIXTURES, "tokens");
const tokenizerJson = () =>
  JSON.parse(readFileSync(join(TOKENS, "tokenizer.json"), "utf8")) as Record<string, unknown> & {
    added_tokens: { id: number; content: string }[];
    model: { vocab: Record<string, number> };
  };

/** Within ten seconds of a processor it is refused by this code, with these words. By its own time: others may have the processor. */
async function refuses(work: () => unknown, code: string, message: RegExp): Promise<void> {
  const began = process.cpuUsage();
  await assert.rejects(async () => work(), { code, message });
  const { user, system } = process.cpuUsage(began);
  assert.ok(user + system < 10e6, `it took ${Math.round((user + system) / 1000)} ms`);
}

async function rows(path: string): Promise<unknown[]> {
  const found: unknown[] = [];
  for await (const row of readRows(path)) found.push(row);
  return found;
}

test("a Parquet file of some hundred bytes that asks for endless work", async () => {
  await refuses(() => rows(join(FIXTURES, "data", "bomb.parquet")), "PL_DATASET_INVALID", /row group took over/);
});

test("a quote inside a CSV field", async (t) => {
  const dir = temporaryFolder(t);
  for (const [name, text] of [
    ["a.csv", 'instruction,output\nsay "hi" twice,hi\n'],
    ["b.csv", 'instruction,output\n"say" hi,hi\n'],
    ["c.tsv", 'instruction\toutput\nsay "hi"\thi\n'],
  ] as const) {
    writeFileSync(join(dir, name), text);
    await refuses(() => rows(join(dir, name)), "PL_DATASET_INVALID", /table: Invalid (Opening|Closing) Quote/);
  }
});

for (const depth of [3_000, 400_000]) {
  test(`values ${depth} deep in a row, a configuration and YAML`, async (t) => {
    const dir = temporaryFolder(t);
    const deep = `${"[".repeat(depth)}1${"]".repeat(depth)}`;
    writeFileSync(join(dir, "d.json"), `[{"instruction": ${deep}, "output": "x"}]`);
    await refuses(() => rows(join(dir, "d.json")), "PL_DATASET_INVALID", /row 1/);
    const config = JSON.parse(
      readFileSync(join(FIXTURES, "goldens", "qwen2-gqa-tied", "model", "config.json"), "utf8"),
    );
    const text = JSON.stringify({ ...config, hidden_act: "@" }).replace('"@"', deep);
    writeFileSync(join(dir, "config.json"), text);
    await refuses(() => readModelSpec(dir), "PL_MODEL_UNSUPPORTED", /hidden_act/).catch(() =>
      refuses(() => readModelSpec(dir), "PL_MODEL_CONFIG_INVALID", /config\.json/),
    );
    writeFileSync(join(dir, "run.yaml"), `target_modules: ${deep}\n`);
    await refuses(
      () => loadConfig("train", { config: join(dir, "run.yaml") }),
      "PL_CONFIG_INVALID",
      /run\.yaml|target/,
    );
  });
}

test("a folder given as a shard, and as the only file", async (t) => {
  const dir = temporaryFolder(t);
  mkdirSync(join(dir, "a.safetensors"));
  writeFileSync(join(dir, "model.safetensors.index.json"), JSON.stringify({ weight_map: { w: "a.safetensors" } }));
  await refuses(() => openCheckpoint(dir), "PL_MODEL_NOT_FOUND", /a\.safetensors can't be opened: it is no file/);
});

test("two spellings of a token's bytes in qwen.tiktoken", async (t) => {
  const dir = temporaryFolder(t);
  const bytes = Array.from({ length: 256 }, (_, byte) => Buffer.from([byte]).toString("base64"));
  writeFileSync(join(dir, "qwen.tiktoken"), [...bytes, "YR=="].map((token, rank) => `${token} ${rank}`).join("\n"));
  await refuses(() => loadTokenizer(dir), "PL_TOKENIZER_INVALID", /line 257 is no canonical base64/);
});

for (const id of [2 ** 31 - 1, 2 ** 31, 2 ** 53, -1, 0.5]) {
  test(`a token of id ${id} in tokenizer.json`, async (t) => {
    for (const where of ["vocabulary", "added tokens"]) {
      const dir = temporaryFolder(t);
      const json = tokenizerJson();
      if (where === "vocabulary") json.model.vocab["a"] = id;
      else json.added_tokens[0]!.id = id;
      writeFileSync(join(dir, "tokenizer.json"), JSON.stringify(json));
      await refuses(() => loadTokenizer(dir), "PL_TOKENIZER_INVALID", /expected a whole number|added_tokens/);
    }
  });
}

const split = (regex: string) => ({ type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: false });
for (const regex of ["(a+)+$", "(?:a|a)*$", "(\\w+\\s?)*!x"]) {
  test(`a pattern of tokenizer.json without end: ${regex}`, async (t) => {
    for (const step of ["pre_tokenizer", "normalizer"]) {
      const dir = temporaryFolder(t);
      // Without tokenizer_config.json: Llama's steps would take the place of these.
      const change =
        step === "normalizer" ? { type: "Replace", pattern: { Regex: regex }, content: "b" } : split(regex);
      writeFileSync(join(dir, "tokenizer.json"), JSON.stringify({ ...tokenizerJson(), [step]: change }));
      const tokenizer = await loadTokenizer(dir);
      assert.ok(tokenizer.encode("bbb").length > 0);
      await refuses(() => tokenizer.encode(`${"a".repeat(60)}?`), "PL_TOKENIZER_INVALID", /patterns has no end/);
    }
  });
}

const HALF = "{% set x = namespace(l=[1]) %}";
const DOUBLE = "{% set x.l = [x.l, x.l] %}".repeat(40);
for (const template of [
  "{{ range(10**9) }}",
  "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
  "{% for a in range(99999) %}{% if [range(0, 99999), {'a': 1}] %}a{% endif %}{% endfor %}",
  "{{ 'a' * 10**9 }}",
  `${HALF}${DOUBLE}{{ x.l }}`,
  "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
  "{{ (none)[::-1] }}",
  "{{ ([none, messages] * 10**6) | map('upper') | list }}",
]) {
  test(`a chat template that asks for too much: ${template.slice(0, 70)}`, async () => {
    const tokenizer = await loadTokenizer(TOKENS);
    const messages = [
      { role: "user", content: "Hi" },
      { role: "assistant", content: "Yes" },
    ];
    const encode = () => new ChatTemplate(tokenizer, template, new Date(0)).encode(messages);
    await refuses(encode, "PL_TEMPLATE_INVALID", /./);
  });
}
