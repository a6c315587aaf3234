import { TextDecoder } from "node:util";
import { Tokenizer as HfTokenizer } from "@huggingface/tokenizers";
import { BytePairs } from "./bpe.ts";
import { charsmapReplacer } from "./charsmap.ts";
import type { TokenizerConfig, TokenizerJson } from "./hf-config.ts";
import { UnigramModel } from "./unigram.ts";

/** Differences between SentencePiece's own unigram model and Rust's. */
export interface SentencePieceRules {
  /** Ids of pieces that are never matched in a text: control, unknown and byte pieces. */
  readonly unreachable: ReadonlySet<number>;
}

/** A normalizer of the library; a sequence has several. */
interface Normalizer {
  config: { type?: string; precompiled_charsmap?: unknown };
  normalizers?: (Normalizer | null)[];
  normalize(text: string): string;
}

/**
 * The JavaScript library over tokenizer.json's parts, with three of them replaced: it treats every precompiled_charsmap as NFKC, its
 * unigram model has no byte pieces, and its byte-pair merges are slow. Throws Error on parts that it can't use.
 */
export function makeLibrary(
  json: TokenizerJson,
  config: TokenizerConfig,
  sentencePiece: SentencePieceRules | null,
): HfTokenizer {
  const hf = new HfTokenizer(json, config);
  mendNormalizer(hf.normalizer as Normalizer | null);
  mendDecoder(hf.decoder as Decoder | null);
  const { type, vocab, unk_id: unknown, byte_fallback: bytes } = json.model;
  if (type === "Unigram" && hf.model !== null && Array.isArray(vocab)) {
    const model = new UnigramModel(vocab, {
      unknownId: typeof unknown === "number" ? unknown : -1,
      byteFallback: bytes === true,
      ...(sentencePiece === null
        ? { unreachable: new Set<number>(), float32: false }
        : { unreachable: sentencePiece.unreachable, float32: true }),
    });
    // Unknown characters of one piece are one token, not those of several.
    hf.model.fuse_unk = false;
    hf.model.encode = (texts: string[]) => texts.flatMap((text) => model.encode(text));
  }
  if (hf.model instanceof Object && "bpe_ranks" in hf.model) {
    quickenMerges(hf.model as unknown as LibraryBpe);
    for (const cut of cutsOf(hf.pre_tokenizer as Cut | null)) if (isByteLevel(cut)) quickenBytes(cut);
  }
  return hf;
}

/** The fields of the library's BPE that are used here. */
interface LibraryBpe {
  merges: [string, string][];
  bpe_ranks: Map<string, number>;
  end_of_word_suffix?: string | null;
  continuing_subword_suffix?: string | null;
  fuse_unk: boolean;
  unk_token?: string | null;
  bpe(piece: string): string[];
  encode(pieces: readonly string[]): string[];
}

/** Merging, and the work around it, is most of the time that encoding a data set takes. */
function quickenMerges(model: LibraryBpe): void {
  if (!model.end_of_word_suffix && !model.continuing_subword_suffix) {
    const pairs = new BytePairs(model.merges);
    model.bpe = (piece) => pairs.split(piece);
    model.bpe_ranks = new Map();
    model.merges = [];
  }
  const encode = model.encode.bind(model);
  const { fuse_unk: fuses, unk_token: unknown } = model;
  // The library fuses the unknown tokens of several pieces too.
  model.fuse_unk = false;
  const tokensOf = remembered((piece) => {
    const tokens = encode([piece]);
    return fuses ? tokens.filter((token, at) => at === 0 || token !== unknown || tokens[at - 1] !== unknown) : tokens;
  });
  model.encode = (pieces) => {
    const tokens: string[] = [];
    for (const piece of pieces) for (const token of tokensOf(piece)) tokens.push(token);
    return tokens;
  };
}

/** A step of the library's pre-tokenizer. */
interface Cut {
  tokenizers?: Cut[];
}
interface ByteLevelCut extends Cut {
  add_prefix_space: boolean;
  use_regex: boolean;
  pattern: RegExp;
  byte_encoder: Readonly<Record<number, string>>;
  pre_tokenize_text(text: string): string[];
}

function cutsOf(cut: Cut | null): Cut[] {
  return cut === null ? [] : [cut, ...(cut.tokenizers ?? []).flatMap(cutsOf)];
}

function isByteLevel(cut: Cut): cut is ByteLevelCut {
  return "byte_encoder" in cut && "use_regex" in cut;
}

/** One character a byte, without a list and a call for each. */
function quickenBytes(cut: ByteLevelCut): void {
  const letters = Array.from({ length: 256 }, (_, byte) => cut.byte_encoder[byte]!);
  const written = remembered((piece) => {
    let text = "";
    for (const byte of Buffer.from(piece)) text += letters[byte]!;
    return text;
  });
  cut.pre_tokenize_text = (text) => {
    const whole = cut.add_prefix_space && !text.startsWith(" ") ? ` ${text}` : text;
    return (cut.use_regex ? (whole.match(cut.pattern) ?? []) : [whole]).map(written);
  };
}

/** Number of texts whose result is cached; the cache is emptied when it is full. */
const REMEMBERED = 1 << 15;
const LONGEST_REMEMBERED = 128;

function remembered<T>(make: (text: string) => T): (text: string) => T {
  const known = new Map<string, T>();
  return (text) => {
    const before = known.get(text);
    if (before !== undefined) return before;
    const made = make(text);
    if (text.length <= LONGEST_REMEMBERED) {
      if (known.size === REMEMBERED) known.clear();
      known.set(text, made);
    }
    return made;
  };
}

function mendNormalizer(normalizer: Normalizer | null): void {
  if (normalizer === null) return;
  for (const part of normalizer.normalizers ?? []) mendNormalizer(part);
  const { type, precompiled_charsmap: charsmap } = normalizer.config;
  if (type !== "Precompiled" || typeof charsmap !== "string") return;
  normalizer.normalize = charsmapReplacer(Buffer.from(charsmap, "base64"));
}

/** A step of the library's decoder; a sequence has several. */
interface Decoder {
  decoders?: (Decoder | null)[];
  text_decoder?: TextDecoder;
}

/** A byte order mark is a character like others. */
function mendDecoder(decoder: Decoder | null): void {
  if (decoder === null) return;
  for (const part of decoder.decoders ?? []) mendDecoder(part);
  if (decoder.text_decoder !== undefined) decoder.text_decoder = new TextDecoder("utf-8", { ignoreBOM: true });
}
