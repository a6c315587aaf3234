import { join } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import { isFile } from "../../common/files.ts";
import type { TokenizerSource } from "./hf.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Files of a tokenizer, copied into checkpoints and exported models. */
export const TOKENIZER_FILES = [
  "qwen.tiktoken",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
] as const;

/**
 * The tokenizer of a model folder: qwen.tiktoken, else tokenizer.json, else vocab.json with merges.txt, else tokenizer.model. Only the
 * library for that one is loaded. Error: PL_TOKENIZER_INVALID.
 */
export async function loadTokenizer(modelDir: string): Promise<Tokenizer> {
  const ranks = join(modelDir, RANKS);
  if (await isFile(ranks)) return (await import("./tiktoken.ts")).loadQwenTiktoken(ranks);
  const source = await readTokenizer(modelDir);
  return (await import("./hf.ts")).buildHfTokenizer(source);
}

const RANKS = "qwen.tiktoken";

/** The contents of the same files; for qwen.tiktoken, its tokens in rank order. Error: PL_TOKENIZER_INVALID. */
export async function describeTokenizer(
  modelDir: string,
): Promise<{ readonly ranks: readonly Uint8Array[] } | TokenizerSource> {
  const ranks = join(modelDir, RANKS);
  if (await isFile(ranks)) return { ranks: await (await import("./tiktoken.ts")).readQwenRanks(ranks) };
  return readTokenizer(modelDir);
}

async function readTokenizer(modelDir: string): Promise<TokenizerSource> {
  if (await isFile(join(modelDir, "tokenizer.json"))) return (await import("./hf.ts")).readHfTokenizer(modelDir);
  if ((await isFile(join(modelDir, "vocab.json"))) && (await isFile(join(modelDir, "merges.txt")))) {
    return (await import("./byte-level-bpe.ts")).readByteLevelBpe(modelDir);
  }
  if (await isFile(join(modelDir, "tokenizer.model"))) {
    return (await import("./sentencepiece.ts")).readSentencePiece(modelDir);
  }
  const expected = "qwen.tiktoken, tokenizer.json, vocab.json with merges.txt, nor tokenizer.model";
  throw new PipeloraError("PL_TOKENIZER_INVALID", `${modelDir} has neither ${expected}.`, {
    hint: "Put the model's tokenizer files into its folder, or give a dataset of ready input_ids.",
  });
}
