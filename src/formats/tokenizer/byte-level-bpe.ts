import { join } from "node:path";
import { z } from "zod";
import { addedTokens, type TokenDefaults, withDefaults } from "./added-tokens.ts";
import { type TokenizerSource, tokenizerSource } from "./hf.ts";
import { check, invalid, readChatTemplate, readJson, readText, readTokenizerConfig } from "./hf-config.ts";
import { aroundText } from "./post-processor.ts";
import { tokenizerClass } from "./tokenizer-class.ts";

/** Ids are checked later, with those of the other kinds. z.record is not used because it drops a token named __proto__. */
const vocabularyJson = z.custom<Readonly<Record<string, number>>>(
  (value) => typeof value === "object" && value !== null && !Array.isArray(value),
  "expected an object of ids by token",
);

interface ByteLevelClass {
  /** How text is split before merging; null: as GPT-2 does. */
  readonly pattern: string | null;
  readonly nfc: boolean;
  readonly tokens: TokenDefaults;
}

const END = "<|endoftext|>";
const QWEN_TOKENS = { unk_token: END, eos_token: END, pad_token: END };
const GPT2_TOKENS = { unk_token: END, bos_token: END, eos_token: END };
const GPT2: ByteLevelClass = { pattern: null, nfc: false, tokens: GPT2_TOKENS };

/** How transformers 5's classes complete a bare vocabulary. */
const CLASSES: ReadonlyMap<string, ByteLevelClass> = new Map([
  ["GPT2Tokenizer", GPT2],
  ["CodeGenTokenizer", GPT2],
  ["GPTNeoXTokenizer", { pattern: null, nfc: true, tokens: { ...GPT2_TOKENS, pad_token: "<|padding|>" } }],
  [
    "Qwen2Tokenizer",
    {
      pattern: String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
      nfc: true,
      tokens: QWEN_TOKENS,
    },
  ],
  [
    "Qwen3_5Tokenizer",
    {
      pattern: String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
      nfc: true,
      tokens: QWEN_TOKENS,
    },
  ],
]);

/**
 * A byte-level BPE from vocab.json and merges.txt, for folders without tokenizer.json. How it splits and normalises text, and its implied
 * tokens, come from the class that tokenizer_config.json (or config.json's model_type) names. Error: PL_TOKENIZER_INVALID, also for an
 * unknown class: another way to split would give other ids.
 */
export async function readByteLevelBpe(dir: string): Promise<TokenizerSource> {
  const path = join(dir, "vocab.json");
  const written = await readTokenizerConfig(dir);
  const name = await tokenizerClass(dir, written);
  const kind = name === null ? undefined : CLASSES.get(name);
  if (kind === undefined) {
    const said = name === null ? "no tokenizer_class beside it" : `tokenizer_class ${JSON.stringify(name)}`;
    const known = [...CLASSES.keys()].join(", ");
    throw invalid(path, `how text is cut is not known: it has ${said}, expected ${known} or a tokenizer.json`);
  }
  const config = withDefaults(written, kind.tokens);
  const vocab = check(vocabularyJson, path, await readJson(path));
  const merges = readMerges(join(dir, "merges.txt"), await readText(join(dir, "merges.txt")), vocab);
  const added = await addedTokens(dir, config, new Map(Object.entries(vocab)));
  const byteLevel = { type: "ByteLevel", add_prefix_space: config.add_prefix_space === true, trim_offsets: true };
  const json = {
    added_tokens: added,
    normalizer: kind.nfc ? { type: "NFC" } : null,
    pre_tokenizer:
      kind.pattern === null
        ? { ...byteLevel, use_regex: true }
        : {
            type: "Sequence",
            pretokenizers: [
              { type: "Split", pattern: { Regex: kind.pattern }, behavior: "Isolated", invert: false },
              { ...byteLevel, use_regex: false },
            ],
          },
    post_processor: aroundText(config, added),
    decoder: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    model: { type: "BPE", vocab, merges },
  };
  return tokenizerSource(path, json, config, await readChatTemplate(dir, config));
}

/** One merge a line: two parts separated by a space. A first line "#version: …" is skipped. */
function readMerges(path: string, text: string, vocab: Readonly<Record<string, number>>): [string, string][] {
  const lines = text.split("\n");
  return lines.flatMap((line, index): [string, string][] => {
    const merge = line.replace(/\r$/, "");
    if (merge === "" || (index === 0 && merge.startsWith("#version"))) return [];
    const [left, right, ...more] = merge.split(" ");
    if (!left || !right || more.length > 0) {
      throw invalid(path, `line ${index + 1} is not two tokens with a space between`);
    }
    for (const token of [left, right, left + right]) {
      if (Object.hasOwn(vocab, token)) continue;
      throw invalid(path, `line ${index + 1} has ${JSON.stringify(token)}, which vocab.json lacks`);
    }
    return [[left, right]];
  });
}
