import assert from "node:assert/strict";
import { copyFileSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import protobuf from "protobufjs";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { StreamDecoder } from "../../../src/formats/tokenizer/tokenizer.ts";
import { temporaryFolder } from "../../support/cli.ts";
import { idsHashes } from "../../support/ids-hash.ts";
import { TEXTS } from "../../support/tokenizer-texts.ts";

const FIXTURES = new URL("../../fixtures/tokenizers/", import.meta.url).pathname;
const names = readdirSync(FIXTURES).filter((name) => /^(bpe|unigram)-/.test(name));
const expectedOf = (name: string) =>
  JSON.parse(readFileSync(join(FIXTURES, name, "expected.json"), "utf8")) as { ids: number[][]; random: string[] };

/** A folder with the model of a fixture and these files beside it. */
function folder(t: TestContext, name: string, files: Readonly<Record<string, unknown>>): string {
  const dir = temporaryFolder(t);
  copyFileSync(join(FIXTURES, name, "tokenizer.model"), join(dir, "tokenizer.model"));
  for (const [file, content] of Object.entries(files)) writeFileSync(join(dir, file), JSON.stringify(content));
  return dir;
}

test("there are models to hold against", () => assert.ok(names.length >= 5));

for (const name of names) {
  test(`${name}: ids of every text as SentencePiece's own library has them`, async () => {
    const tokenizer = await loadTokenizer(join(FIXTURES, name));
    const { ids, random } = expectedOf(name);
    const encode = (text: string) => tokenizer.encode(text, { specials: false });
    for (const [i, text] of TEXTS.entries()) assert.deepEqual(encode(text), ids[i], JSON.stringify(text));
    assert.deepEqual(idsHashes(random.length * 250, encode), random);
  });
}

test("a stream shows the same text as the whole, with bytes and spaces", async () => {
  for (const name of names) {
    const tokenizer = await loadTokenizer(join(FIXTURES, name));
    for (const text of TEXTS) {
      const ids = tokenizer.encode(text, { specials: false });
      const stream = new StreamDecoder(tokenizer, {});
      const shown = ids.map((id) => stream.push(id)).join("") + stream.end();
      assert.equal(shown, tokenizer.decode(ids), `${name} ${JSON.stringify(text)}`);
    }
  }
});

test("with byte pieces and no rule of normalisation every text comes back", async () => {
  for (const name of ["bpe-bytes-noprefix", "unigram-bytes-identity"]) {
    const tokenizer = await loadTokenizer(join(FIXTURES, name));
    for (const text of TEXTS) {
      if (text.includes("▁")) continue;
      assert.equal(tokenizer.decode(tokenizer.encode(text, { specials: false })), text, JSON.stringify(text));
    }
  }
});

test("control pieces are special, user-defined ones are not, and both stay whole", async () => {
  const tokenizer = await loadTokenizer(join(FIXTURES, "bpe-nfkc-user"));
  const [sep, user] = [tokenizer.tokenId("<sep>")!, tokenizer.tokenId("<user>")!];
  assert.ok(tokenizer.encode("a<sep>b").includes(sep));
  assert.ok(!tokenizer.encode("a<sep>b", { specials: false }).includes(sep));
  assert.ok(tokenizer.encode("a<user>b", { specials: false }).includes(user));
  assert.equal(tokenizer.decode([user, sep], { skipSpecials: true }), "<user>");
  assert.deepEqual([tokenizer.bosId, tokenizer.eosId], [1, 2]);
});

test("the class decides about BOS, and LlamaTokenizer about the space in front", async (t) => {
  const load = async (config: object) =>
    loadTokenizer(folder(t, "bpe-bytes-noprefix", { "tokenizer_config.json": config }));
  const plain = await loadTokenizer(join(FIXTURES, "bpe-bytes-noprefix"));
  const space = plain.tokenId("▁")!;
  const a = plain.tokenId("a")!;
  const all = { addSpecials: true };
  assert.deepEqual(plain.encode("a", all), [a]);
  for (const name of ["InternLM2Tokenizer", "BaichuanTokenizer", "GemmaTokenizerFast"]) {
    assert.deepEqual((await load({ tokenizer_class: name })).encode("a", all), [1, a], name);
    assert.deepEqual((await load({ tokenizer_class: name, add_bos_token: false })).encode("a", all), [a], name);
  }
  const first = (tokenizer: Awaited<ReturnType<typeof load>>, text: string) => tokenizer.decode(tokenizer.encode(text));
  const prefixed = plain.encode(" a");
  for (const legacy of [true, false]) {
    const llama = await load({ tokenizer_class: "LlamaTokenizer", legacy });
    assert.deepEqual(llama.encode("a", all), [1, ...prefixed]);
    assert.equal(first(llama, "a b"), "a b");
    const after = llama.encode("a</s>a");
    assert.deepEqual(after, [...prefixed, 2, ...(legacy ? prefixed : [a])]);
  }
  assert.ok(space > 0);
});

test("ChatGLM's tokens follow the pieces, and [gMASK] sop go first", async (t) => {
  const dir = folder(t, "bpe-bytes-noprefix", { "tokenizer_config.json": { tokenizer_class: "ChatGLMTokenizer" } });
  const tokenizer = await loadTokenizer(dir);
  const size = expectedSize("bpe-bytes-noprefix");
  assert.deepEqual(tokenizer.encode("", { addSpecials: true }), [size + 1, size + 3]);
  assert.equal(tokenizer.tokenId("eop"), size + 4);
});

function expectedSize(name: string): number {
  const bytes = readFileSync(join(FIXTURES, name, "tokenizer.model"));
  const reader = protobuf.Reader.create(bytes);
  let pieces = 0;
  while (reader.pos < reader.len) {
    const tag = reader.uint32();
    if (tag >>> 3 === 1) pieces += 1;
    reader.skipType(tag & 7);
  }
  return pieces;
}

/** A serialised model of pieces with their types. */
function modelOf(pieces: readonly [string, number][], charsmap: Uint8Array = new Uint8Array()): Uint8Array {
  const writer = protobuf.Writer.create();
  for (const [piece, type] of pieces) {
    writer.uint32(10).fork().uint32(10).string(piece).uint32(21).float(-1).uint32(24).int32(type).ldelim();
  }
  return writer.uint32(26).fork().uint32(18).bytes(charsmap).ldelim().finish();
}

test("files that are none", async (t) => {
  const whole = readFileSync(join(FIXTURES, "unigram-nmt-nfkc", "tokenizer.model"));
  const broken: [Uint8Array, RegExp][] = [
    [Buffer.from(""), /no pieces/],
    [Buffer.from("hello world, this is no model"), /SentencePiece|pieces/],
    [whole.subarray(0, 1000), /SentencePiece/],
    [
      modelOf([
        ["<unk>", 2],
        ["a".repeat(300), 1],
      ]),
      /piece 1 has more than 256/,
    ],
    [
      modelOf([
        ["<unk>", 2],
        ["a", 1],
        ["a", 1],
      ]),
      /piece 2 is empty or stands there twice/,
    ],
    [modelOf([["a", 1]]), /0 unknown pieces/],
    [
      modelOf([
        ["<unk>", 2],
        ["a", 5],
      ]),
      /piece 1 is unused/,
    ],
    [
      modelOf(
        [
          ["<unk>", 2],
          ["a", 1],
        ],
        Buffer.from("0000"),
      ),
      /precompiled_charsmap is cut off/,
    ],
    [Buffer.from("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"), /git lfs pull/],
  ];
  for (const [bytes, message] of broken) {
    const dir = temporaryFolder(t);
    writeFileSync(join(dir, "tokenizer.model"), bytes);
    await assert.rejects(loadTokenizer(dir), (error: Error & { code?: string }) => {
      assert.equal(error.code, "PL_TOKENIZER_INVALID");
      assert.match(error.message, message);
      return true;
    });
  }
});
