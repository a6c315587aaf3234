import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import fc from "fast-check";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { QWEN_SPECIALS } from "../../../src/formats/tokenizer/tiktoken.ts";
import { StreamDecoder, type Tokenizer } from "../../../src/formats/tokenizer/tokenizer.ts";
import { trainBpe } from "../../../src/formats/tokenizer/train-bpe.ts";
import { fixture, shared } from "../shared-data.ts";

interface Encoded {
  readonly text: string;
  readonly ids: number[];
  readonly decoded?: string;
}

const SAMPLE = [
  "the thin thing thought that they think",
  "皇上驾到！皇上万福金安。",
  "I'll say it's 2024\n\n  ok",
  "é vs é",
];
const text = fc.oneof(fc.string({ unit: "grapheme" }), fc.string({ unit: "binary" }), fc.constantFrom(...SAMPLE));
/** Lone surrogates have no UTF-8. */
const wellFormed = text.map((value) => value.replace(/\p{Surrogate}/gu, ""));

async function folderWith(file: string, content: string): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), "pipelora-tokenizer-"));
  await writeFile(join(dir, file), content);
  return dir;
}

describe("a byte-level BPE trained here", () => {
  let tokenizer: Tokenizer;
  const file = trainBpe(SAMPLE, 256 + 10 + QWEN_SPECIALS.length);
  before(async () => {
    tokenizer = await loadTokenizer(await folderWith("qwen.tiktoken", file));
  });

  test("is a rank file: all bytes, then merges, frequent ones first", () => {
    const lines = file.trimEnd().split("\n");
    assert.equal(lines.length, 266);
    assert.equal(lines[65], "QQ== 65");
    assert.equal(Buffer.from(lines[256]!.split(" ")[0]!, "base64").toString(), "th");
    assert.equal(trainBpe(SAMPLE, 474), file);
  });

  test("special tokens follow the ranks directly", () => {
    assert.equal(tokenizer.eosId, 266);
    assert.equal(tokenizer.padId, 266);
    assert.deepEqual(tokenizer.encode("<|endoftext|><|im_start|><|im_end|><|extra_204|>"), [266, 267, 268, 266 + 207]);
    assert.equal(tokenizer.vocabSize, 474);
    assert.equal(tokenizer.tokenId("<|im_end|>"), 268);
    assert.equal(tokenizer.tokenId("no such token"), null);
    assert.ok(tokenizer.encode("<|im_start|>", { specials: false }).length > 1);
  });

  test("any text comes back, in NFC", () => {
    fc.assert(
      fc.property(wellFormed, (value) => {
        fc.pre(!value.includes("<|"));
        assert.equal(tokenizer.decode(tokenizer.encode(value)), value.normalize("NFC"));
      }),
    );
  });

  test("a stream shows whole characters only, and all of them in the end", () => {
    fc.assert(
      fc.property(wellFormed, (value) => {
        fc.pre(!value.includes("<|") && !value.includes("\ufffd"));
        const stream = new StreamDecoder(tokenizer);
        const pieces = tokenizer.encode(value).map((id) => stream.push(id));
        assert.ok(pieces.every((piece) => !piece.includes("\ufffd")));
        assert.equal(pieces.join("") + stream.end(), value.normalize("NFC"));
      }),
    );
  });

  test("an unfinished character shows at the end", () => {
    const stream = new StreamDecoder(tokenizer);
    assert.equal(stream.push(0xe7), "");
    assert.equal(stream.end(), "\ufffd");
    assert.equal(tokenizer.decode([65, 268, 66], { skipSpecials: true }), "AB");
    assert.equal(tokenizer.decode([65, 268, 66]), "A<|im_end|>B");
  });

  test("too small a vocabulary, and files that are none", async () => {
    assert.throws(() => trainBpe(SAMPLE, 300), { code: "PL_CONFIG_INVALID" });
    const lines = file.trimEnd().split("\n");
    const wrong: [string, RegExp][] = [
      [lines.slice(1).join("\n"), /rank 1, expected 0/],
      [lines.slice(0, 200).join("\n"), /only 200 of the 256/],
      ["not base64!", /line 1/],
      [[...lines, `${lines[260]!.split(" ")[0]} 266`].join("\n"), /repeats/],
    ];
    for (const [content, message] of wrong) {
      await assert.rejects(loadTokenizer(await folderWith("qwen.tiktoken", content)), message);
    }
    await assert.rejects(loadTokenizer(await mkdtemp(join(tmpdir(), "pipelora-tokenizer-"))), {
      code: "PL_TOKENIZER_INVALID",
    });
  });
});

describe("tokenizer.json", () => {
  const golden = JSON.parse(readFileSync(fixture("tokens/expected.json"), "utf8")) as { encode: Encoded[] };
  let tokenizer: Tokenizer;
  before(async () => {
    tokenizer = await loadTokenizer(fixture("tokens"));
  });

  for (const { text: value, ids, decoded } of golden.encode) {
    test(`as transformers: ${JSON.stringify(value.slice(0, 30))}`, () => {
      assert.deepEqual(tokenizer.encode(value, { addSpecials: true }), ids);
      assert.deepEqual(tokenizer.encode(value), ids.slice(1));
      assert.equal(tokenizer.decode(ids, { skipSpecials: true }), decoded);
      const stream = new StreamDecoder(tokenizer);
      assert.equal(ids.map((id) => stream.push(id)).join("") + stream.end(), decoded);
    });
  }

  test("special tokens and sizes", () => {
    assert.deepEqual([tokenizer.bosId, tokenizer.eosId, tokenizer.padId, tokenizer.addBos], [1, 2, 2, true]);
    assert.equal(tokenizer.vocabSize, 512);
    assert.deepEqual(tokenizer.encode("a</s>b").slice(1, 2), [2]);
    assert.ok(!tokenizer.encode("a</s>b", { specials: false }).includes(2));
    assert.equal(tokenizer.decode([]), "");
  });

  test("files that are none", async () => {
    for (const content of ["{", "[]", "{}", '{"model": {"type": "Nope", "vocab": {}}}', '{"model": {"type": "BPE"}}']) {
      await assert.rejects(loadTokenizer(await folderWith("tokenizer.json", content)), {
        code: "PL_TOKENIZER_INVALID",
      });
    }
    const dir = await folderWith("tokenizer.json", await readFile(fixture("tokens/tokenizer.json"), "utf8"));
    await writeFile(join(dir, "tokenizer_config.json"), '{"eos_token": 3}');
    await assert.rejects(loadTokenizer(dir), { code: "PL_TOKENIZER_INVALID" });
  });
});

describe("Qwen's own vocabulary", () => {
  const model = shared("data/qwen-7b-chat");
  const path = shared("goldens/tokens/qwen_tiktoken.json");
  test("every golden text", { skip: model === null || path === null }, async () => {
    const golden = JSON.parse(readFileSync(path!, "utf8")) as { encode: Encoded[] };
    const tokenizer = await loadTokenizer(model!);
    assert.deepEqual([tokenizer.eosId, tokenizer.vocabSize], [151643, 151851]);
    for (const { text: value, ids } of golden.encode) {
      assert.deepEqual(tokenizer.encode(value), ids, JSON.stringify(value));
      assert.equal(tokenizer.decode(ids), value.normalize("NFC"));
    }
  });
});
