import { readFile } from "node:fs/promises";
import { Tiktoken } from "tiktoken";
import { PipeloraError } from "../../common/errors.ts";
import { lfsPointer } from "../../common/lfs.ts";
import type { DecodeOptions, EncodeOptions, Tokenizer } from "./tokenizer.ts";

/** How Qwen (v1) splits text into pieces before byte-pair merging. */
const QWEN_PATTERN = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

/** Qwen's special tokens in id order; they follow the ranks directly. */
export const QWEN_SPECIALS: readonly string[] = [
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  ...Array.from({ length: 205 }, (_, i) => `<|extra_${i}|>`),
];

const MAX_FILE_BYTES = 256 * 1024 * 1024;

/** Reads `qwen.tiktoken`: one "base64 rank" a line. Error: PL_TOKENIZER_INVALID. */
export async function loadQwenTiktoken(path: string): Promise<Tokenizer> {
  return new QwenTokenizer(await readRanks(path));
}

/** The bytes of every token of the file, in rank order. Error: PL_TOKENIZER_INVALID. */
export async function readQwenRanks(path: string): Promise<Uint8Array[]> {
  return (await readRanks(path)).map((token) => Buffer.from(token, "base64"));
}

async function readRanks(path: string): Promise<string[]> {
  const file = await readFile(path);
  const pointer = lfsPointer(file);
  if (pointer !== null) throw invalid(path, pointer);
  if (file.length > MAX_FILE_BYTES) throw invalid(path, `${file.length} bytes are more than any vocabulary needs`);
  return parseRanks(path, file.toString("latin1"));
}

/** The tokens in rank order, base64. Ranks must be 0 … n - 1 without repeats, and every single byte must be a token. */
function parseRanks(path: string, text: string): string[] {
  const tokens: string[] = [];
  const bytes = new Set<string>();
  const seen = new Set<string>();
  for (const [index, line] of text.split("\n").entries()) {
    if (line === "" || line === "\r") continue;
    const match = /^([A-Za-z0-9+/]+={0,2}) (\d{1,9})\r?$/.exec(line);
    if (match === null) throw invalid(path, `line ${index + 1} is not "base64 rank"`);
    const [, token, rank] = match as unknown as [string, string, string];
    if (Number(rank) !== tokens.length)
      throw invalid(path, `line ${index + 1} has rank ${rank}, expected ${tokens.length}`);
    // Base64 can spell the same bytes in several ways; only the canonical one is accepted.
    if (Buffer.from(token, "base64").toString("base64") !== token)
      throw invalid(path, `line ${index + 1} is no canonical base64`);
    if (seen.has(token)) throw invalid(path, `line ${index + 1} repeats a token`);
    seen.add(token);
    if (token.length === 4 && token.endsWith("==")) bytes.add(Buffer.from(token, "base64").toString("latin1"));
    tokens.push(token);
  }
  if (bytes.size !== 256) throw invalid(path, `only ${bytes.size} of the 256 single bytes are tokens`);
  return tokens;
}

function invalid(path: string, message: string): PipeloraError {
  return new PipeloraError("PL_TOKENIZER_INVALID", `${path}: ${message}.`, {
    hint: "Fetch qwen.tiktoken again from where the model came.",
  });
}

/** Text is brought to NFC first, as Qwen's tokenizer does. */
class QwenTokenizer implements Tokenizer {
  readonly bosId = null;
  readonly eosId: number;
  readonly padId: number;
  readonly addBos = false;
  readonly isQwen1 = true;
  readonly vocabSize: number;
  readonly chatTemplate = null;
  readonly specialTokens = { eos_token: "<|endoftext|>", pad_token: "<|endoftext|>" };
  readonly #bpe: Tiktoken;
  readonly #specials: ReadonlyMap<string, number>;
  readonly #firstSpecial: number;
  readonly #utf8 = new TextDecoder("utf-8");

  constructor(tokens: readonly string[]) {
    this.#firstSpecial = tokens.length;
    this.#specials = new Map(QWEN_SPECIALS.map((token, i) => [token, tokens.length + i]));
    // The package's own compact form of a rank file: "! <first rank> <base64> <base64> …".
    this.#bpe = new Tiktoken(`! 0 ${tokens.join(" ")}`, Object.fromEntries(this.#specials), QWEN_PATTERN);
    this.eosId = tokens.length;
    this.padId = tokens.length;
    this.vocabSize = tokens.length + QWEN_SPECIALS.length;
  }

  encode(text: string, { specials = true }: EncodeOptions = {}): number[] {
    const normal = text.normalize("NFC");
    return Array.from(specials ? this.#bpe.encode(normal, "all") : this.#bpe.encode_ordinary(normal));
  }

  decode(ids: readonly number[], { skipSpecials = false }: DecodeOptions = {}): string {
    const known = ids.filter((id) => id >= 0 && id < (skipSpecials ? this.#firstSpecial : this.vocabSize));
    return this.#utf8.decode(this.#bpe.decode(Uint32Array.from(known)));
  }

  tokenId(token: string): number | null {
    const special = this.#specials.get(token);
    if (special !== undefined) return special;
    const ids = this.encode(token);
    return ids.length === 1 ? ids[0]! : null;
  }
}
