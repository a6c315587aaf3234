import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import { lfsPointer } from "../../common/lfs.ts";
import { type AddedToken, addedTokens, type TokenDefaults, withDefaults } from "./added-tokens.ts";
import { authorsFormat } from "./authors-formats.ts";
import { type TokenizerSource, tokenizerSource } from "./hf.ts";
import { invalid, readChatTemplate, readTokenizerConfig } from "./hf-config.ts";
import { BEFORE_ALL, SPACES_AT_ENDS } from "./known-patterns.ts";
import { aroundText, putAround } from "./post-processor.ts";
import { PIECE, type Piece, parseSentencePieceModel, type SentencePieceModel } from "./sentencepiece-model.ts";
import { tokenizerClass } from "./tokenizer-class.ts";

const MAX_FILE_BYTES = 64 * 1024 * 1024;
const SPACE = "▁";

/** Classes that put BOS first where tokenizer_config.json says nothing. */
const BOS_FIRST: ReadonlySet<string> = new Set([
  "LlamaTokenizer",
  "GemmaTokenizer",
  "BaichuanTokenizer",
  "InternLMTokenizer",
  "InternLM2Tokenizer",
]);
/** ChatGLM's own tokens, in id order; they follow the pieces directly. */
const GLM_TOKENS: readonly string[] = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"];

/**
 * A tokenizer from tokenizer.model (SentencePiece) alone: brought into tokenizer.json's form as transformers' converters do. Text is
 * normalised as the model says; where the class is LlamaTokenizer, as transformers 5 does for it. Control pieces are special
 * tokens, user-defined ones added tokens. Error: PL_TOKENIZER_INVALID.
 */
export async function readSentencePiece(dir: string): Promise<TokenizerSource> {
  const path = join(dir, "tokenizer.model");
  const bytes = await readFile(path);
  const pointer = lfsPointer(bytes);
  if (pointer !== null) throw invalid(path, pointer);
  if (bytes.length > MAX_FILE_BYTES) throw invalid(path, `${bytes.length} bytes are more than any vocabulary needs`);
  const model = parse(path, bytes);
  const written = await readTokenizerConfig(dir);
  const name = await tokenizerClass(dir, written);
  const config = withDefaults({ ...written, tokenizer_class: name }, defaultTokens(model));
  const own = name === "ChatGLMTokenizer" ? glmTokens(model.pieces.length) : [];
  const vocabulary = new Map(model.pieces.map(({ piece }, id) => [piece, id]));
  const chatTemplate = await readChatTemplate(dir, config);
  const named = await addedTokens(dir, config, vocabulary, [...ownTokens(model), ...own]);
  const knows = (content: string) => named.some((token) => token.content === content);
  const pieces = model.pieces.map(({ piece }) => piece);
  const authors = chatTemplate === null ? await authorsFormat(dir, name, pieces, knows) : null;
  const missing = (authors?.tokens ?? []).filter(({ content }) => !knows(content));
  const added = [...named, ...missing.map(({ id, content }) => token(id, content, true))];
  const json = {
    added_tokens: added,
    normalizer: normalizer(model, config.add_prefix_space ?? model.addDummyPrefix),
    pre_tokenizer: null,
    post_processor:
      own.length > 0
        ? putAround(
            own.filter(({ content }) => content === "[gMASK]" || content === "sop"),
            [],
          )
        : aroundText(config, added, name !== null && BOS_FIRST.has(name)),
    decoder: decoder(config.add_prefix_space ?? model.addDummyPrefix),
    model: model.kind === "bpe" ? bpe(model) : unigram(model),
  };
  const reachable: readonly number[] = [PIECE.normal, PIECE.userDefined];
  const unreachable = new Set(model.pieces.flatMap(({ type }, id) => (reachable.includes(type) ? [] : [id])));
  const remark =
    authors === null ? null : "the tokenizer has no chat template: conversations are written as the model's authors do";
  return tokenizerSource(
    path,
    json,
    config,
    { source: chatTemplate ?? authors?.template ?? null, remark },
    { unreachable },
  );
}

function parse(path: string, bytes: Uint8Array): SentencePieceModel {
  try {
    return parseSentencePieceModel(bytes);
  } catch (error) {
    if (error instanceof PipeloraError) throw error;
    throw invalid(path, `it is no SentencePiece model that can be used: ${(error as Error).message}`, error);
  }
}

function defaultTokens({ pieces, bosId, eosId }: SentencePieceModel): TokenDefaults {
  const unknown = pieces.find(({ type }) => type === PIECE.unknown)!.piece;
  const [bos, eos] = [pieces[bosId]?.piece, pieces[eosId]?.piece];
  return {
    unk_token: unknown,
    ...(bos === undefined ? {} : { bos_token: bos }),
    ...(eos === undefined ? {} : { eos_token: eos }),
  };
}

const token = (id: number, content: string, special: boolean): AddedToken => ({
  id,
  content,
  special,
  lstrip: false,
  rstrip: false,
  normalized: false,
  single_word: false,
});

const ownTokens = ({ pieces }: SentencePieceModel): AddedToken[] =>
  pieces.flatMap(({ piece, type }, id) =>
    type === PIECE.control || type === PIECE.userDefined ? [token(id, piece, type === PIECE.control)] : [],
  );

const glmTokens = (first: number): AddedToken[] => GLM_TOKENS.map((content, i) => token(first + i, content, true));

function normalizer({ charsmap, removeExtraWhitespaces }: SentencePieceModel, prefix: boolean): object {
  const replace = (pattern: object, content: string) => ({ type: "Replace", pattern, content });
  return {
    type: "Sequence",
    normalizers: [
      ...(charsmap.length === 0
        ? []
        : [{ type: "Precompiled", precompiled_charsmap: Buffer.from(charsmap).toString("base64") }]),
      ...(removeExtraWhitespaces ? [replace({ Regex: SPACES_AT_ENDS }, ""), replace({ Regex: " {2,}" }, " ")] : []),
      // Before a text that has anything left.
      ...(prefix ? [replace({ Regex: BEFORE_ALL }, " ")] : []),
      replace({ String: " " }, SPACE),
    ],
  };
}

const decoder = (prefix: boolean) => ({
  type: "Sequence",
  decoders: [
    { type: "Replace", pattern: { String: SPACE }, content: " " },
    { type: "ByteFallback" },
    { type: "Fuse" },
    ...(prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
  ],
});

const unigram = ({ pieces, byteFallback }: SentencePieceModel) => ({
  type: "Unigram",
  vocab: pieces.map(({ piece, score }) => [piece, score] as const),
  unk_id: pieces.findIndex(({ type }) => type === PIECE.unknown),
  byte_fallback: byteFallback,
});

function bpe({ pieces, byteFallback }: SentencePieceModel): TokenizerModel {
  return {
    type: "BPE",
    vocab: Object.fromEntries(pieces.map(({ piece }, id) => [piece, id])),
    merges: mergesOf(pieces),
    unk_token: pieces.find(({ type }) => type === PIECE.unknown)!.piece,
    fuse_unk: true,
    byte_fallback: byteFallback,
  };
}
type TokenizerModel = { type: string } & Record<string, unknown>;

/**
 * The merges that a BPE's pieces came from: every way to cut a piece into two others, pieces with the higher score first.
 * SentencePiece merges whatever pair gives the piece of the highest score, and no control, unknown or byte piece.
 * transformers 5.18 goes by id instead of score where it has tokenizer.model alone, and so differs from the same models'
 * tokenizer.json on runs of spaces; this follows SentencePiece.
 */
function mergesOf(pieces: readonly Piece[]): [string, string][] {
  const normal = pieces.filter(({ type }) => type === PIECE.normal || type === PIECE.userDefined);
  const ids = new Map(normal.map(({ piece }, id) => [piece, id]));
  const byScore = normal.filter(({ type }) => type === PIECE.normal).sort((a, b) => b.score - a.score);
  return byScore.flatMap(({ piece }) => {
    const characters = Array.from(piece);
    const cuts: [string, string][] = [];
    let left = "";
    for (const character of characters.slice(0, -1)) {
      left += character;
      const right = piece.slice(left.length);
      if (ids.has(left) && ids.has(right)) cuts.push([left, right]);
    }
    return cuts.sort((a, b) => ids.get(a[0])! - ids.get(b[0])! || ids.get(a[1])! - ids.get(b[1])!);
  });
}
