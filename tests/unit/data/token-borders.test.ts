import assert from "node:assert/strict";
import { test } from "node:test";
import { TokenBorders } from "../../../src/data/token-borders.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import type { Tokenizer } from "../../../src/formats/tokenizer/tokenizer.ts";
import { TEXTS } from "../../support/models/tokenizer-texts.ts";

const model = (name: string) => new URL(`../../fixtures/tokenizers/${name}`, import.meta.url).pathname;

/** The first token at which the text up to `at` comes out otherwise than the whole. */
function slowly(tokenizer: Tokenizer, text: string, tokens: readonly number[], at: number): number {
  const ids = tokenizer.encode(text.slice(0, at));
  const differs = ids.findIndex((id, t) => id !== tokens[t]);
  return at >= text.length ? tokens.length : differs < 0 ? ids.length : differs;
}

for (const name of ["bpe-bytes-noprefix", "bpe-nfkc-user", "unigram-bytes-identity", "unigram-nmt-nfkc"]) {
  test(`borders are those of the whole text: ${name}`, async () => {
    const tokenizer = await loadTokenizer(model(name));
    let text = "";
    const spans: [number, number][] = [];
    for (const [i, content] of TEXTS.entries()) {
      text += `${["<s>user\n", "USER: ", "</s>", "\n\n"][i % 4]}${content}`;
      const begin = text.length;
      text += `${content}${["</s>", "\n", "", "!"][i % 4]}`;
      spans.push([begin, text.length]);
    }
    const tokens = tokenizer.encode(text);
    const borders = new TokenBorders(tokenizer, text, tokens);
    for (const [begin, end] of spans) {
      assert.equal(borders.tokenAt(begin, false), slowly(tokenizer, text, tokens, begin));
      assert.equal(borders.tokenAt(end, true), slowly(tokenizer, text, tokens, end));
    }
  });
}

test("what is encoded again grows with the text, not with its square", async () => {
  const tokenizer = await loadTokenizer(model("bpe-bytes-noprefix"));
  const work = (turns: number) => {
    let characters = 0;
    const counting = {
      encode(text: string) {
        characters += text.length;
        return tokenizer.encode(text);
      },
    } as Tokenizer;
    const turn = "<s>user\nhello there</s><s>bot\nfine 你好</s>";
    const text = turn.repeat(turns);
    const borders = new TokenBorders(counting, text, tokenizer.encode(text));
    for (let i = 0; i < turns; i++) {
      borders.tokenAt(i * turn.length + 30, false);
      borders.tokenAt((i + 1) * turn.length, true);
    }
    return characters;
  };
  assert.ok(work(400) < 4.2 * work(100));
});
