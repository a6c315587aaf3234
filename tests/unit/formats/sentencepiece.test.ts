import assert from "node:assert/strict";
import { copyFileSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import protobuf from "protobufjs";
import { rowTemplate } from "../../../src/data/templates.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { StreamDecoder, type Tokenizer } from "../../../src/formats/tokenizer/tokenizer.ts";
import { idsHashes } from "../../support/models/ids-hash.ts";
import { TEXTS } from "../../support/models/tokenizer-texts.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

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

/** What the authors' code does, id by id. */
const TALK = [
  { role: "system", content: "Sei kurz." },
  { role: "user", content: "a b\n c" },
  { role: "assistant", content: " d" },
  { role: "user", content: "e" },
  { role: "assistant", content: "f g" },
];
type Turn = (typeof TALK)[number];

async function chatOf(dir: string) {
  const tokenizer = await loadTokenizer(dir);
  const chat = rowTemplate(tokenizer, { name: "auto", system: null });
  return { tokenizer, chat, id: (token: string) => tokenizer.tokenId(token)! };
}

function trainedText(tokenizer: Tokenizer, { labels }: { labels: readonly number[] }): string {
  return tokenizer.decode(labels.filter((label) => label !== -100));
}

test("ChatGLM3 without a template: the prefix, and each role's token, newline and text for themselves", async (t) => {
  for (const model of ["bpe-bytes-noprefix", "unigram-bytes-identity"]) {
    const dir = folder(t, model, {
      "tokenizer_config.json": { tokenizer_class: "ChatGLMTokenizer" },
      "config.json": { model_type: "chatglm", _name_or_path: "THUDM/chatglm3-6b" },
    });
    const { tokenizer, chat, id } = await chatOf(dir);
    const size = expectedSize(model);
    assert.deepEqual(
      ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"].map(id),
      [5, 6, 7, 8].map((at) => size + at),
    );
    const space = tokenizer.encode(" ");
    const message = ({ role, content }: Turn) => {
      // With a model that puts no space in front, the format's own does.
      const text = model.includes("noprefix") ? ` ${content}` : content;
      return [id(`<|${role}|>`), ...tokenizer.encode("\n"), ...tokenizer.encode(text)];
    };
    const expected = [id("[gMASK]"), id("sop"), ...TALK.flatMap(message)];
    const encoded = chat.encodeMessages(TALK);
    if (model.includes("noprefix")) assert.deepEqual(encoded.tokens, [...expected, tokenizer.eosId]);
    assert.equal(encoded.tokens.at(-1), tokenizer.eosId);
    assert.deepEqual(chat.encodePrompt(TALK.slice(0, 2)).at(-1), id("<|assistant|>"));
    assert.match(trainedText(tokenizer, encoded).replace(/\s+/g, " "), /^ ?d f g<\/s>$/);
    assert.ok(space.length > 0);
    assert.match(chat.remark!, /authors/);
  }
});

test("ChatGLM2 has the same class and no format of ChatGLM3's", async (t) => {
  const files = { "tokenizer_config.json": { tokenizer_class: "ChatGLMTokenizer" } };
  const tokenizer = await loadTokenizer(folder(t, "bpe-bytes-noprefix", files));
  assert.equal(tokenizer.chatTemplate, null);
  assert.equal(tokenizer.tokenId("<|user|>"), null);
  const code = folder(t, "bpe-bytes-noprefix", files);
  writeFileSync(join(code, "tokenization_chatglm.py"), 'special = ["<|user|>", "<|observation|>"]');
  assert.notEqual((await loadTokenizer(code)).chatTemplate, null);
});

test("InternLM2 without a template: ChatML behind BOS", async (t) => {
  const token = (content: string) => ({ content, special: true, lstrip: false, rstrip: false, normalized: false });
  const size = expectedSize("bpe-bytes-noprefix");
  const dir = folder(t, "bpe-bytes-noprefix", {
    "tokenizer_config.json": {
      tokenizer_class: "InternLM2Tokenizer",
      added_tokens_decoder: { [size]: token("<|im_start|>"), [size + 1]: token("<|im_end|>") },
    },
  });
  const { tokenizer, chat, id } = await chatOf(dir);
  const turn = ({ role, content }: Turn) => [
    id("<|im_start|>"),
    ...tokenizer.encode(`${role}\n${content}`),
    id("<|im_end|>"),
    ...tokenizer.encode("\n"),
  ];
  const encoded = chat.encodeMessages(TALK);
  assert.deepEqual(encoded.tokens, [tokenizer.bosId, ...TALK.flatMap(turn)]);
  assert.equal(trainedText(tokenizer, encoded), " d<|im_end|>\nf g<|im_end|>\n");
});

test("MiniCPM without a template: the reply's mark behind each question, the end token at the end", async (t) => {
  const dir = folder(t, "bpe-bytes-noprefix", {
    "tokenizer_config.json": { tokenizer_class: "LlamaTokenizer", add_prefix_space: false },
    "config.json": { model_type: "minicpm" },
  });
  const { tokenizer, chat } = await chatOf(dir);
  const encoded = chat.encodeMessages(TALK.slice(1));
  assert.equal(tokenizer.decode(encoded.tokens), "<s><用户>a b\n c<AI>d<用户>e<AI>f g</s>");
  assert.equal(trainedText(tokenizer, encoded), "df g</s>");
  assert.equal(tokenizer.decode(chat.encodePrompt(TALK.slice(1, 2))), "<s><用户>a b\n c<AI>");
});

test("Baichuan2 without a template: the turns' tokens of generation_config.json, whatever kind of piece they are", async (t) => {
  const dir = folder(t, "bpe-bytes-noprefix", {
    "tokenizer_config.json": { tokenizer_class: "BaichuanTokenizer" },
    "generation_config.json": { user_token_id: 10, assistant_token_id: 11 },
  });
  const { tokenizer, chat } = await chatOf(dir);
  const turn = ({ role, content }: Turn) => [
    ...(role === "system" ? [] : [role === "user" ? 10 : 11]),
    ...tokenizer.encode(content),
  ];
  const encoded = chat.encodeMessages(TALK);
  assert.deepEqual(encoded.tokens, [...TALK.flatMap(turn), tokenizer.eosId]);
  assert.equal(trainedText(tokenizer, encoded), " df g</s>");
  assert.equal(chat.encodePrompt(TALK.slice(0, 2)).at(-1), 11);
  const base = folder(t, "bpe-bytes-noprefix", { "tokenizer_config.json": { tokenizer_class: "BaichuanTokenizer" } });
  assert.equal((await loadTokenizer(base)).chatTemplate, null);
});
