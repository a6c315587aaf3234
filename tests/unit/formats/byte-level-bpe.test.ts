import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { TEXTS } from "../../support/models/tokenizer-texts.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

/** GPT-2's letters for the 256 bytes. */
const LETTERS = (() => {
  const plain = (b: number) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let more = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(plain(b) ? b : more++));
})();
const MERGES = ["h e", "l l", "Ġ h", "he ll", "hell o", "1 2", "12 3", "' s", "Ġ Ġ", "ä ½", "ä½ ł", "Ġ a", "e s"];
const tokens = [...LETTERS, ...MERGES.map((merge) => merge.replace(" ", ""))];
const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
const END = "<|endoftext|>";
const special = (id: number, content: string) => ({ id, content, special: true, normalized: false });
const QWEN2 = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

function folder(t: TestContext, files: Readonly<Record<string, unknown>>): string {
  const dir = temporaryFolder(t);
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(join(dir, name), typeof content === "string" ? content : JSON.stringify(content));
  }
  return dir;
}
const parts = { "vocab.json": vocab, "merges.txt": `#version: 0.2\n${MERGES.join("\n")}\n` };

/** tokenizer.json as transformers writes it for such a class. */
function tokenizerJson(name: string, added: readonly object[]) {
  const level = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true };
  const split = { type: "Split", pattern: { Regex: QWEN2 }, behavior: "Isolated", invert: false };
  const qwen = name === "Qwen2Tokenizer";
  return {
    added_tokens: added,
    normalizer: qwen || name === "GPTNeoXTokenizer" ? { type: "NFC" } : null,
    pre_tokenizer: qwen
      ? { type: "Sequence", pretokenizers: [split, { ...level, use_regex: false }] }
      : { ...level, use_regex: true },
    post_processor: null,
    decoder: { type: "ByteLevel" },
    model: { type: "BPE", vocab, merges: MERGES },
  };
}

for (const name of ["Qwen2Tokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer", "CodeGenTokenizer"]) {
  test(`${name}: vocab.json and merges.txt give the ids of tokenizer.json`, async (t) => {
    const added = [special(300, END), special(301, "<|im_end|>")];
    const config = {
      tokenizer_class: `${name}Fast`,
      pad_token: END,
      added_tokens_decoder: Object.fromEntries(added.map((token) => [token.id, token])),
    };
    const alone = await loadTokenizer(folder(t, { ...parts, "tokenizer_config.json": config }));
    const json = { "tokenizer.json": tokenizerJson(name, added), "tokenizer_config.json": config };
    const whole = await loadTokenizer(folder(t, json));
    for (const text of [...TEXTS, "hello 123's", "你<|im_end|>hello", "e\u0301 's 'S 'ſ"]) {
      for (const specials of [true, false]) {
        assert.deepEqual(alone.encode(text, { specials }), whole.encode(text, { specials }), JSON.stringify(text));
      }
      assert.equal(alone.decode(whole.encode(text)), whole.decode(whole.encode(text)));
    }
    assert.equal(alone.eosId, 300);
    assert.equal(alone.vocabSize, 302);
  });
}

test("the class comes from config.json's model_type where none is named", async (t) => {
  const qwen = await loadTokenizer(folder(t, { ...parts, "config.json": { model_type: "qwen3" } }));
  const gpt2 = await loadTokenizer(folder(t, { ...parts, "config.json": { model_type: "gpt2" } }));
  const one = (digit: string) => vocab[digit]!;
  assert.deepEqual(qwen.encode("123"), [one("1"), one("2"), one("3")]);
  assert.deepEqual(gpt2.encode("123"), [vocab["123"]!]);
  assert.equal(qwen.bosId, null);
  assert.equal(gpt2.bosId, tokens.length);
});

test("older folders: special_tokens_map.json and added_tokens.json", async (t) => {
  const tokenizer = await loadTokenizer(
    folder(t, {
      ...parts,
      "tokenizer_config.json": { tokenizer_class: "GPT2Tokenizer" },
      "special_tokens_map.json": { bos_token: "<b>", eos_token: { content: "<e>" }, unk_token: "<e>" },
      "added_tokens.json": { "<e>": 400, "<plain>": 401 },
    }),
  );
  assert.deepEqual([tokenizer.bosId, tokenizer.eosId, tokenizer.vocabSize], [402, 400, 403]);
  assert.deepEqual(tokenizer.encode("<plain><e>", { specials: false })[0], 401);
  assert.equal(tokenizer.decode([400, 401], { skipSpecials: true }), "<plain>");
});

test("tokens that JavaScript's objects have names for", async (t) => {
  const words = ["__proto__", "constructor", "toString"];
  const own = words.map((word, i) => `${JSON.stringify(word)}: ${300 + i}`).join(", ");
  const text = `${JSON.stringify(vocab).slice(0, -1)}, ${own}}`;
  const config = { tokenizer_class: "GPT2Tokenizer" };
  const tokenizer = await loadTokenizer(folder(t, { ...parts, "vocab.json": text, "tokenizer_config.json": config }));
  for (const [i, word] of words.entries()) {
    assert.equal(tokenizer.tokenId(word), 300 + i);
    assert.equal(tokenizer.decode([300 + i]), word);
  }
});

test("add_bos_token and add_eos_token", async (t) => {
  const config = { tokenizer_class: "GPT2Tokenizer", add_bos_token: true, add_eos_token: true };
  const tokenizer = await loadTokenizer(folder(t, { ...parts, "tokenizer_config.json": config }));
  const end = tokens.length;
  assert.deepEqual(tokenizer.encode("a", { addSpecials: true }), [end, vocab["a"], end]);
  assert.ok(tokenizer.addBos);
});

test("files that are none, and classes whose cut is not known", async (t) => {
  const config = { "tokenizer_config.json": { tokenizer_class: "GPT2Tokenizer" } };
  const refused: [Record<string, unknown>, RegExp][] = [
    [{ ...parts, "tokenizer_config.json": { tokenizer_class: "BertTokenizer" } }, /"BertTokenizer", expected GPT2/],
    [parts, /no tokenizer_class/],
    [{ ...parts, ...config, "merges.txt": "h e\nq q q\n" }, /line 2 is not two tokens/],
    [{ ...parts, ...config, "merges.txt": "h z\n" }, /line 1 has "hz"/],
    [{ ...parts, ...config, "vocab.json": { a: -1 } }, /vocab\.json/],
    [
      { ...parts, ...config, "merges.txt": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n" },
      /lfs/,
    ],
  ];
  for (const [files, message] of refused) {
    await assert.rejects(loadTokenizer(folder(t, files)), (error: Error & { code?: string }) => {
      assert.equal(error.code, "PL_TOKENIZER_INVALID");
      assert.match(error.message, message);
      return true;
    });
  }
});
