import { PipeloraError } from "../../../common/errors.ts";
import { bool, list, type MetadataValue, string, texts, uint32 } from "../../../formats/gguf/metadata.ts";
import { BytePairs } from "../../../formats/tokenizer/bpe.ts";
import type { TokenizerSource } from "../../../formats/tokenizer/hf.ts";
import { QWEN_SPECIALS } from "../../../formats/tokenizer/tiktoken.ts";
import type { Tokenizer } from "../../../formats/tokenizer/tokenizer.ts";
import { preTokenizerName } from "./pre-tokenizers.ts";

/** llama_token_type */
const TYPE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** A vocabulary in the file's form: keys below "tokenizer.". */
export interface Vocabulary {
  readonly keys: readonly (readonly [string, MetadataValue])[];
  /** What llama.cpp does otherwise: a sentence each. */
  readonly warnings: readonly string[];
}

interface Token {
  readonly text: string;
  readonly type: number;
  readonly score: number;
}

/** The model's part of the vocabulary, and how it is to be used. */
interface Tokens {
  readonly byId: Map<number, Token>;
  readonly keys: readonly (readonly [string, MetadataValue])[];
  readonly scored: boolean;
  readonly warnings: readonly string[];
}

type Description = { readonly ranks: readonly Uint8Array[] } | TokenizerSource;

/** `rows`: of the embedding, which the file has a token each for. Error: PL_TOKENIZER_INVALID. */
export function vocabularyOf(description: Description, tokenizer: Tokenizer, rows: number): Vocabulary {
  const { byId, keys, scored, warnings } =
    "ranks" in description ? rankedTokens(description.ranks) : sourceTokens(description);
  const most = [...byId.keys()].reduce((largest, id) => Math.max(largest, id), -1);
  if (most >= rows) {
    throw new PipeloraError(
      "PL_TOKENIZER_INVALID",
      `the tokenizer has a token of id ${most}, and the model's embedding ${rows} rows.`,
      { hint: "Take the tokenizer from the same folder as the weights." },
    );
  }
  const tokens = Array.from(
    { length: rows },
    (_, id): Token => byId.get(id) ?? { text: `[PAD${id}]`, type: TYPE.unused, score: 0 },
  );
  return {
    keys: [
      ...keys,
      ["ggml.tokens", texts(tokens.map(({ text }) => text))],
      ...(scored
        ? ([
            [
              "ggml.scores",
              list(
                "float32",
                tokens.map(({ score }) => score),
              ),
            ],
          ] as const)
        : []),
      [
        "ggml.token_type",
        list(
          "int32",
          tokens.map(({ type }) => type),
        ),
      ],
      ["ggml.add_bos_token", bool(tokenizer.addBos)],
      ["ggml.add_eos_token", bool(false)],
    ],
    warnings,
  };
}

/** Ids of tokens with a meaning. `ends`: ids that end an answer (ModelSpec.eosTokenIds). */
export function specialTokenKeys(
  tokenizer: Tokenizer,
  ends: readonly number[],
): readonly (readonly [string, MetadataValue])[] {
  const unknown = tokenizer.specialTokens["unk_token"];
  const eos = tokenizer.eosId ?? ends[0] ?? null;
  const turn = ends.find((id) => id !== eos) ?? null;
  const ids: [string, number | null][] = [
    ["ggml.bos_token_id", tokenizer.bosId],
    ["ggml.eos_token_id", eos],
    ["ggml.eot_token_id", turn],
    ["ggml.unknown_token_id", unknown === undefined ? null : tokenizer.tokenId(unknown)],
    ["ggml.padding_token_id", tokenizer.padId],
  ];
  return ids.flatMap(([key, id]) => (id === null ? [] : [[key, uint32(id)] as const]));
}

function sourceTokens(source: TokenizerSource): Tokens {
  const { path, json } = source;
  const model = json.model as {
    readonly type?: string | undefined;
    readonly byte_fallback?: boolean | null | undefined;
    readonly vocab?: unknown;
    readonly merges?: unknown;
    readonly unk_token?: unknown;
    readonly ignore_merges?: unknown;
  };
  if (model.type !== "BPE" || typeof model.vocab !== "object" || model.vocab === null || !Array.isArray(model.merges)) {
    throw new PipeloraError("PL_TOKENIZER_INVALID", `${path} is a ${model.type} model; expected BPE for a GGUF file.`, {
      hint: "Merge the adapter (coordinator merge) and convert the folder with llama.cpp's own program.",
    });
  }
  const vocab = Object.entries(model.vocab as Readonly<Record<string, number>>);
  const merges = (model.merges as readonly (string | readonly [string, string])[]).map(
    (merge): readonly [string, string] => (typeof merge === "string" ? pairOf(merge) : merge),
  );
  const tokens =
    model.byte_fallback === true
      ? pieceTokens(source, vocab, merges, String(model.unk_token ?? ""))
      : byteLevelTokens(source, vocab, merges, model.ignore_merges === true);
  for (const { id, content, special } of json.added_tokens ?? []) {
    const type = tokens.byId.get(id)?.type === TYPE.unknown ? TYPE.unknown : special ? TYPE.control : TYPE.userDefined;
    tokens.byId.set(id, { text: content, type, score: 0 });
  }
  return tokens;
}

function pairOf(merge: string): [string, string] {
  const cut = merge.indexOf(" ", 1);
  return [merge.slice(0, cut), merge.slice(cut + 1)];
}

function byteLevelTokens(
  { path, json }: TokenizerSource,
  vocab: readonly (readonly [string, number])[],
  merges: readonly (readonly [string, string])[],
  ignoresMerges: boolean,
): Tokens {
  const pre = preTokenizerName(path, { steps: json["pre_tokenizer"], ignoresMerges });
  const warnings: string[] = [];
  if (ignoresMerges && !pre.ignoresMerges) {
    const pairs = new BytePairs(merges as [string, string][]);
    const lost = vocab.filter(([text]) => pairs.split(text).length > 1).length;
    if (lost > 0) {
      warnings.push(`${lost} tokens are no result of merges: llama.cpp cuts these words into several tokens`);
    }
  }
  if (JSON.stringify(json["normalizer"] ?? null).includes('"NFK')) {
    warnings.push("llama.cpp does not bring text into this tokenizer's normal form: some characters give other tokens");
  }
  return {
    byId: new Map(vocab.map(([text, id]) => [id, { text, type: TYPE.normal, score: 0 }])),
    keys: [
      ["ggml.model", string("gpt2")],
      ["ggml.pre", string(pre.name)],
      ["ggml.merges", texts(merges.map((merge) => merge.join(" ")))],
    ],
    scored: false,
    warnings,
  };
}

/**
 * SentencePiece's pieces: llama.cpp merges whatever pair gives the piece of the highest score, so a piece's score is minus the rank of its
 * first merge.
 */
function pieceTokens(
  { json }: TokenizerSource,
  vocab: readonly (readonly [string, number])[],
  merges: readonly (readonly [string, string])[],
  unknown: string,
): Tokens {
  const ranks = new Map<string, number>();
  for (const [rank, [left, right]] of merges.entries()) {
    if (!ranks.has(left + right)) ranks.set(left + right, rank);
  }
  const typeOf = (text: string) =>
    text === unknown ? TYPE.unknown : /^<0x[0-9A-F]{2}>$/.test(text) ? TYPE.byte : TYPE.normal;
  const steps = JSON.stringify([json["normalizer"] ?? null, json["pre_tokenizer"] ?? null]);
  const joins = steps.includes('"Precompiled"') || steps.includes("{2,}");
  return {
    byId: new Map(vocab.map(([text, id]) => [id, { text, type: typeOf(text), score: -(ranks.get(text) ?? 0) }])),
    keys: [
      ["ggml.model", string("llama")],
      ["ggml.pre", string("default")],
      ["ggml.add_space_prefix", bool(putsSpaceFirst(json))],
    ],
    scored: true,
    warnings: joins
      ? [
          "llama.cpp neither joins runs of spaces nor replaces characters, as this tokenizer does: some texts give other tokens",
        ]
      : [],
  };
}

/** Whether a text gets a space in front: by a Metaspace, a Prepend, or a Replace at the beginning. */
function putsSpaceFirst(json: TokenizerSource["json"]): boolean {
  const steps = JSON.stringify([json["normalizer"] ?? null, json["pre_tokenizer"] ?? null]);
  if (/"prepend_scheme":"(always|first)"/.test(steps)) return true;
  return steps.includes('"Prepend"') || /"Regex":"[^"]*\(\?=\[\\\\s\\\\S\]\)"/.test(steps);
}

/** Qwen (v1)'s ranks as a vocabulary with merges: each token's last merge is found by merging its bytes with the lower ranks only. */
function rankedTokens(ranks: readonly Uint8Array[]): Tokens {
  const letters = byteLetters();
  const written = ranks.map((bytes) => Array.from(bytes, (byte) => letters[byte]!).join(""));
  const rankOf = new Map(written.map((text, rank) => [text, rank]));
  const merges = written.flatMap((text, rank) => {
    const parts = Array.from(text);
    while (parts.length > 2) {
      let best = -1;
      let least = rank;
      for (let i = 0; i + 1 < parts.length; i++) {
        const found = rankOf.get(parts[i]! + parts[i + 1]!);
        if (found !== undefined && found < least) [best, least] = [i, found];
      }
      if (best < 0) break;
      parts.splice(best, 2, parts[best]! + parts[best + 1]!);
    }
    return parts.length === 2 ? [parts.join(" ")] : [];
  });
  const normal = written.map((text, id): [number, Token] => [id, { text, type: TYPE.normal, score: 0 }]);
  const special = QWEN_SPECIALS.map((text, i): [number, Token] => [
    written.length + i,
    { text, type: TYPE.control, score: 0 },
  ]);
  return {
    byId: new Map([...normal, ...special]),
    keys: [
      ["ggml.model", string("gpt2")],
      ["ggml.pre", string("qwen2")],
      ["ggml.merges", texts(merges)],
    ],
    scored: false,
    warnings: [],
  };
}

/** GPT-2's letter of each byte: itself where it can be seen, else one from U+0100 on. */
function byteLetters(): string[] {
  let next = 256;
  const seen = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(seen(byte) ? byte : next++));
}
