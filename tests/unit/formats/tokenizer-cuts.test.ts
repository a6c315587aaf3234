import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { fixture } from "../shared-data.ts";

/** Steps of a pre_tokenizer in tokenizer.json, and what tokenizers 0.23.2 cuts each text into. */
const { texts, cuts } = JSON.parse(readFileSync(fixture("tokenizers/cuts.json"), "utf8")) as {
  readonly texts: readonly string[];
  readonly cuts: readonly { readonly pre_tokenizer: object; readonly pieces: readonly string[][] }[];
};

const EMPTY = {
  version: "1.0",
  added_tokens: [],
  normalizer: null,
  pre_tokenizer: null,
  post_processor: null,
  decoder: null,
};
const folder = mkdtemp(join(tmpdir(), "pipelora-tokenizer-"));
async function loaded(json: object) {
  const dir = await folder;
  await writeFile(join(dir, "tokenizer.json"), JSON.stringify({ ...EMPTY, ...json }));
  return loadTokenizer(dir);
}
/** A vocabulary of whole words. */
const words = (all: readonly string[]) => ({
  ...{ type: "WordLevel", unk_token: "<unk>" },
  vocab: Object.fromEntries(["<unk>", ...new Set(all)].map((word, id) => [word, id])),
});

test("each step cuts a text as the Rust library does", async () => {
  assert.ok(cuts.length > 50);
  for (const { pre_tokenizer, pieces } of cuts) {
    const model = words(pieces.flat());
    const tokenizer = await loaded({ pre_tokenizer, model });
    for (const [index, text] of texts.entries()) {
      const expected = pieces[index]!.map((piece) => (model.vocab as Record<string, number>)[piece]);
      assert.deepEqual(tokenizer.encode(text), expected, `${JSON.stringify(pre_tokenizer)} on ${JSON.stringify(text)}`);
    }
  }
});

test("unknown words stay one token each; unknown characters of one word are fused where the model says so", async () => {
  const pre_tokenizer = { type: "WhitespaceSplit" };
  const unigram = {
    type: "Unigram",
    unk_id: 0,
    vocab: [
      ["<unk>", 0],
      ["a", -1],
    ],
    byte_fallback: false,
  };
  assert.deepEqual((await loaded({ pre_tokenizer, model: unigram })).encode("xy a xyz q"), [0, 1, 0, 0]);
  const bpe = { type: "BPE", unk_token: "<unk>", fuse_unk: true, vocab: { "<unk>": 0, a: 1 }, merges: [] };
  assert.deepEqual((await loaded({ pre_tokenizer, model: bpe })).encode("xy a xyz axxa"), [0, 1, 0, 1, 0, 1]);
  const apart = { ...bpe, fuse_unk: false };
  assert.deepEqual((await loaded({ pre_tokenizer, model: apart })).encode("xy a"), [0, 0, 1]);
});

test("a byte order mark within a text is a character", async () => {
  const bytes = Object.fromEntries(
    Array.from({ length: 256 }, (_, b) => [`<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`, b]),
  );
  const model = { type: "BPE", byte_fallback: true, unk_token: "<0x00>", vocab: bytes, merges: [] };
  const decoder = { type: "Sequence", decoders: [{ type: "ByteFallback" }, { type: "Fuse" }] };
  const tokenizer = await loaded({ model, decoder });
  assert.equal(tokenizer.decode(tokenizer.encode("a\ufeffb")), "a\ufeffb");
});

test("what the library passes over is refused by name", async () => {
  const model = words(["a"]);
  const token = { id: 1, content: "a", single_word: true, special: false };
  await assert.rejects(loaded({ model, added_tokens: [token] }), /added token "a" has single_word/);
  const bpe = { type: "BPE", vocab: { a: 0 }, merges: [], continuing_subword_prefix: "##" };
  await assert.rejects(loaded({ model: bpe }), /continuing_subword_prefix "##"/);
});
