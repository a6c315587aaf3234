import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { openSafetensors } from "../../../src/formats/safetensors.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

function folder(t: TestContext, files: Readonly<Record<string, unknown>>): string {
  const dir = temporaryFolder(t);
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(join(dir, name), typeof content === "string" ? content : JSON.stringify(content));
  }
  return dir;
}

const special = (id: number, content: string) => ({ id, content, special: true, normalized: false });
function bpe(tokens: readonly string[], merges: readonly [string, string][], more: object = {}) {
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
  return {
    version: "1.0",
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: { type: "Fuse" },
    model: { type: "BPE", vocab, merges },
    ...more,
  };
}

test("Digits cuts at every numeric character of Unicode", async (t) => {
  const numeric = Array.from({ length: 0x110000 }, (_, code) => code)
    .filter((code) => code < 0xd800 || code > 0xdfff)
    .map((code) => String.fromCodePoint(code))
    .filter((character) => /[\p{Nd}\p{Nl}\p{No}]/u.test(character));
  assert.ok(numeric.length > 1800 && numeric.includes("①") && numeric.includes("Ⅳ") && numeric.includes("१"));
  const tokens = ["a", ...numeric, ...numeric.map((n) => `a${n}`), "①②"];
  const merges: [string, string][] = [["①", "②"], ...numeric.map((n): [string, string] => ["a", n])];
  const load = async (individual: boolean) => {
    const pre_tokenizer = {
      type: "Sequence",
      pretokenizers: [{ type: "Digits", individual_digits: individual }],
    };
    return loadTokenizer(folder(t, { "tokenizer.json": bpe(tokens, merges, { pre_tokenizer }) }));
  };
  const each = await load(true);
  for (const n of numeric) assert.deepEqual(each.encode(`a${n}`), [0, tokens.indexOf(n)], n);
  const [one, two] = [tokens.indexOf("①"), tokens.indexOf("②")];
  assert.deepEqual(each.encode("①②"), [one, two]);
  assert.deepEqual((await load(false)).encode("a①②"), [0, tokens.indexOf("①②")]);
});

test("BOS and EOS that stand in special_tokens_map.json alone", async (t) => {
  const json = bpe(["a", "b"], [], { added_tokens: [special(2, "<s>"), special(3, "</s>")] });
  const map = { bos_token: "<s>", eos_token: { content: "</s>", lstrip: false } };
  const older = await loadTokenizer(folder(t, { "tokenizer.json": json, "special_tokens_map.json": map }));
  assert.deepEqual([older.bosId, older.eosId], [2, 3]);
  assert.deepEqual(older.specialTokens, { bos_token: "<s>", eos_token: "</s>" });
  // What tokenizer_config.json names wins; with an added_tokens_decoder the map is not read.
  const named = { "tokenizer.json": json, "special_tokens_map.json": map };
  const other = await loadTokenizer(folder(t, { ...named, "tokenizer_config.json": { eos_token: "<s>" } }));
  assert.deepEqual([other.bosId, other.eosId], [2, 2]);
  const newer = { "tokenizer_config.json": { added_tokens_decoder: { "3": special(3, "</s>") } } };
  assert.deepEqual((await loadTokenizer(folder(t, { ...named, ...newer }))).specialTokens, {});
});

test("tokens that stand in added_tokens_decoder alone", async (t) => {
  const config = { eos_token: "<end>", added_tokens_decoder: { "2": special(2, "<end>") } };
  const tokenizer = await loadTokenizer(
    folder(t, { "tokenizer.json": bpe(["a", "b"], []), "tokenizer_config.json": config }),
  );
  assert.equal(tokenizer.eosId, 2);
  assert.deepEqual(tokenizer.encode("a<end>b"), [0, 2, 1]);
  assert.equal(tokenizer.decode([0, 2, 1], { skipSpecials: true }), "ab");
});

test("white space is Unicode's: U+0085 is, U+FEFF is not", async (t) => {
  const tokens = ["a", "\u0085", "\ufeff", "a\u0085", "a\ufeff"];
  const merges: [string, string][] = [
    ["a", "\u0085"],
    ["a", "\ufeff"],
  ];
  const load = (pattern: string) => {
    const pre_tokenizer = { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
    return loadTokenizer(folder(t, { "tokenizer.json": bpe(tokens, merges, { pre_tokenizer }) }));
  };
  for (const pattern of ["\\s+", "[\\s]+", "\\S+", "[^\\S]+"]) {
    const tokenizer = await load(pattern);
    assert.deepEqual(tokenizer.encode("a\u0085"), [0, 1], pattern);
    assert.deepEqual(tokenizer.encode("a\ufeff"), [4], pattern);
  }
});

test("(?i:'s) takes the long s too", async (t) => {
  const tokens = ["a", "'", "s", "S", "ſ", "'s", "'S", "'ſ", "a'"];
  const merges: [string, string][] = [
    ["a", "'"],
    ["'", "s"],
    ["'", "S"],
    ["'", "ſ"],
  ];
  for (const pattern of ["(?i:'s|'t)", "'(?i:[sdmt]|ll)"]) {
    const pre_tokenizer = { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
    const tokenizer = await loadTokenizer(folder(t, { "tokenizer.json": bpe(tokens, merges, { pre_tokenizer }) }));
    for (const end of ["'s", "'S", "'ſ"]) assert.deepEqual(tokenizer.encode(`a${end}`), [0, tokens.indexOf(end)]);
  }
});

test("a pointer of Git LFS in place of any of a model's files is named as one", async (t) => {
  const pointer = `version https://git-lfs.github.com/spec/v1\noid sha256:${"0".repeat(64)}\nsize 9\n`;
  const json = bpe(["a"], []);
  const said = /pointer of Git LFS.*"git lfs pull"/;
  for (const files of [
    { "tokenizer.json": pointer },
    { "tokenizer.json": json, "tokenizer_config.json": pointer },
    { "tokenizer.json": json, "special_tokens_map.json": pointer },
    { "tokenizer.json": json, "chat_template.jinja": pointer },
    { "qwen.tiktoken": pointer },
  ]) {
    await assert.rejects(loadTokenizer(folder(t, files)), said);
  }
  await assert.rejects(openSafetensors(join(folder(t, { "model.safetensors": pointer }), "model.safetensors")), said);
  await assert.rejects(readModelSpec(folder(t, { "config.json": pointer })), said);
  await assert.rejects(openCheckpoint(folder(t, { "model.safetensors.index.json": pointer })), said);
});
