import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { mutateBytes, mutatedJson, mutateText, REGEX_BOMBS } from "../mutate.ts";
import type { Random } from "../random.ts";
import type { FuzzTarget } from "../target.ts";

const FOLDER = join(PACKAGE_ROOT, "tests", "fixtures", "tokens");
const [TOKENIZER, CONFIG] = ["tokenizer.json", "tokenizer_config.json"].map(
  (name) => JSON.parse(readFileSync(join(FOLDER, name), "utf8")) as Record<string, unknown>,
) as [Record<string, unknown>, Record<string, unknown>];

const TEXTS = [
  "Hello, wörld! 123 你好 🙂 <|im_start|>user\nhi<|im_end|>",
  `${"a".repeat(3_000)}!`,
  " ".repeat(2_000),
  "aaaa bbbb ".repeat(200),
];

async function works(dir: string): Promise<void> {
  const tokenizer = await loadTokenizer(dir);
  for (const text of TEXTS) {
    for (const addSpecials of [false, true]) {
      const ids = tokenizer.encode(text, { addSpecials });
      if (!ids.every((id) => Number.isInteger(id) && id >= 0 && id < tokenizer.vocabSize)) {
        throw new Error(`an id outside of 0 … ${tokenizer.vocabSize - 1}`);
      }
      tokenizer.decode(ids, { skipSpecials: addSpecials });
    }
  }
  tokenizer.encode("plain", { specials: false });
  for (const token of Object.values(tokenizer.specialTokens)) tokenizer.tokenId(token);
  for (const id of [tokenizer.bosId, tokenizer.eosId, tokenizer.padId]) {
    if (id !== null && !Number.isInteger(id)) throw new Error(`a special token of id ${id}`);
  }
}

/** Steps as the tokenizers of known models have them: what a change then makes of them. */
function withSteps(random: Random): Record<string, unknown> {
  const regex = random.pick([...REGEX_BOMBS, "\\s+", "\\p{N}{1,3}"]);
  const split = { type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: random.chance(0.5) };
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: random.chance(0.5) };
  return {
    ...TOKENIZER,
    pre_tokenizer: random.pick<unknown>([
      null,
      split,
      byteLevel,
      { type: "Sequence", pretokenizers: [split, byteLevel] },
    ]),
    normalizer: random.pick<unknown>([
      TOKENIZER["normalizer"],
      { type: "Replace", pattern: { Regex: regex }, content: "aa" },
      { type: "Sequence", normalizers: [{ type: "NFC" }, { type: "Prepend", prepend: "▁" }] },
    ]),
  };
}

const hf: FuzzTarget = {
  name: "tokenizer-json",
  make(random, dir) {
    const json = withSteps(random);
    const touched = random.below(3);
    writeFileSync(join(dir, "tokenizer.json"), touched === 0 ? JSON.stringify(json) : mutatedJson(random, json));
    writeFileSync(
      join(dir, "tokenizer_config.json"),
      touched === 1 ? JSON.stringify(CONFIG) : mutatedJson(random, CONFIG),
    );
    if (random.chance(0.1)) {
      writeFileSync(
        join(dir, "special_tokens_map.json"),
        mutatedJson(random, { bos_token: "<s>", eos_token: { content: "</s>" } }),
      );
    }
  },
  check: works,
};

function ranks(random: Random): string {
  const bytes = Array.from({ length: 256 }, (_, byte) => Buffer.from([byte]));
  const merges = ["he", "ll", "hell", "hello", " a", "aa", "aaaa"].map((text) => Buffer.from(text));
  // The same bytes in another spelling, a token that stands twice, a long one.
  const more = random.pick([[], ["YR=="], ["YQ"], ["aGVsbA=="], ["//////8="], ["AAAA".repeat(500)]]);
  return [...[...bytes, ...merges].map((token) => token.toString("base64")), ...more]
    .map((token, rank) => `${token} ${random.chance(0.9998) ? rank : 7}`)
    .join("\n");
}

const tiktoken: FuzzTarget = {
  name: "tokenizer-tiktoken",
  make(random, dir) {
    const text = ranks(random);
    const changed = () => (random.chance(0.5) ? mutateText(random, text) : mutateBytes(random, Buffer.from(text)));
    writeFileSync(join(dir, "qwen.tiktoken"), random.chance(0.6) ? changed() : text);
    if (random.chance(0.1) && !existsSync(join(dir, "tokenizer_config.json"))) {
      writeFileSync(join(dir, "tokenizer_config.json"), mutatedJson(random, CONFIG));
    }
  },
  check: works,
};

export const TOKENIZERS: readonly FuzzTarget[] = [hf, tiktoken];
