import { Tokenizer as HfTokenizer } from "@huggingface/tokenizers";
import { charsmapReplacer } from "./charsmap.ts";
import type { TokenizerConfig, TokenizerJson } from "./hf-config.ts";
import { UnigramModel } from "./unigram.ts";

/** Where SentencePiece's own unigram model differs from Rust's. */
export interface SentencePieceRules {
  /** Ids of pieces that are never found in a text: control, unknown and byte pieces. */
  readonly unreachable: ReadonlySet<number>;
}

/** A normalizer of the library; a sequence has several. */
interface Normalizer {
  config: { type?: string; precompiled_charsmap?: unknown };
  normalizers?: (Normalizer | null)[];
  normalize(text: string): string;
}

/**
 * The JavaScript library over tokenizer.json's parts, with two of them mended: it takes NFKC for every precompiled_charsmap, and
 * its unigram model knows no bytes. Throws Error on parts that it can't use.
 */
export function makeLibrary(
  json: TokenizerJson,
  config: TokenizerConfig,
  sentencePiece: SentencePieceRules | null,
): HfTokenizer {
  const hf = new HfTokenizer(json, config);
  mendNormalizer(hf.normalizer as Normalizer | null);
  const { type, vocab, unk_id: unknown, byte_fallback: bytes } = json.model;
  if (type === "Unigram" && hf.model !== null && Array.isArray(vocab)) {
    const model = new UnigramModel(vocab, {
      unknownId: typeof unknown === "number" ? unknown : -1,
      byteFallback: bytes === true,
      ...(sentencePiece === null
        ? { unreachable: new Set<number>(), float32: false }
        : { unreachable: sentencePiece.unreachable, float32: true }),
    });
    hf.model.encode = (texts: string[]) => texts.flatMap((text) => model.encode(text));
  }
  return hf;
}

function mendNormalizer(normalizer: Normalizer | null): void {
  if (normalizer === null) return;
  for (const part of normalizer.normalizers ?? []) mendNormalizer(part);
  const { type, precompiled_charsmap: charsmap } = normalizer.config;
  if (type !== "Precompiled" || typeof charsmap !== "string") return;
  normalizer.normalize = charsmapReplacer(Buffer.from(charsmap, "base64"));
}
