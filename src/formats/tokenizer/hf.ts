import { join } from "node:path";
import type { Tokenizer as HfTokenizer } from "@huggingface/tokenizers";
import { PipeloraError } from "../../common/errors.ts";
import { shown } from "../../common/shown.ts";
import { TimeLimitError, withTimeLimit } from "../../common/time-limit.ts";
import {
  check,
  invalid,
  readChatTemplate,
  readJson,
  readTokenizerConfig,
  TOKEN_NAMES,
  type TokenizerConfig,
  type TokenizerJson,
  textOf,
  tokenizerJson,
} from "./hf-config.ts";
import { hasOnlyKnownPatterns } from "./known-patterns.ts";
import { makeLibrary, type SentencePieceRules } from "./library.ts";
import { asRustCuts } from "./patterns.ts";
import { aroundText } from "./post-processor.ts";
import type { DecodeOptions, EncodeOptions, Tokenizer } from "./tokenizer.ts";

/** Far above any tokenizer's ids. */
const MAX_VOCABULARY = 1 << 24;
/** Time limit for a text whose tokenizer has unknown patterns. Known ones take a few milliseconds. */
const PATTERN_MS = 500;
const SECOND_PATTERN_MS = 2_000;
const MS_A_CHARACTER = 0.05;

/**
 * Reads tokenizer.json with tokenizer_config.json beside it (and chat_template.jinja where the template has a file of its
 * own), under transformers 5's meaning of the two. Error: PL_TOKENIZER_INVALID.
 */
export async function readHfTokenizer(dir: string): Promise<TokenizerSource> {
  const path = join(dir, "tokenizer.json");
  const json = check(tokenizerJson, path, await readJson(path));
  const config = await readTokenizerConfig(dir);
  return tokenizerSource(path, json, config, await readChatTemplate(dir, config));
}

/** A chat template, and a warning about its origin. */
interface ChatTemplateSource {
  readonly source: string | null;
  readonly remark: string | null;
}
const NO_TEMPLATE: ChatTemplateSource = { source: null, remark: null };

/** A tokenizer's files in tokenizer.json's form, whatever they were. */
export interface TokenizerSource {
  /** The file that errors name. */
  readonly path: string;
  /** The tokenizer as transformers builds it; patterns are in Rust's syntax. */
  readonly json: TokenizerJson;
  readonly config: TokenizerConfig;
  readonly template: ChatTemplateSource;
  readonly sentencePiece: SentencePieceRules | null;
}

/** Error: PL_TOKENIZER_INVALID. */
export function tokenizerSource(
  path: string,
  json: TokenizerJson,
  config: TokenizerConfig,
  template: string | null | ChatTemplateSource,
  sentencePiece: SentencePieceRules | null = null,
): TokenizerSource {
  const built = asTransformersBuildsIt(withAddedTokens(json, config), config);
  checkIds(path, built);
  checkParts(path, built);
  const source = typeof template === "object" ? (template ?? NO_TEMPLATE) : { source: template, remark: null };
  return { path, json: built, config, template: source, sentencePiece };
}

/** Error: PL_TOKENIZER_INVALID. */
export function buildHfTokenizer({ path, json, config, template, sentencePiece }: TokenizerSource): Tokenizer {
  try {
    const { normalizer, pre_tokenizer: cuts, decoder } = json;
    const known = hasOnlyKnownPatterns({ normalizer, cuts, decoder });
    return new JsonTokenizer(path, withRustCuts(json), config, template, known, sentencePiece);
  } catch (error) {
    if (error instanceof PipeloraError) throw error;
    throw invalid(path, (error as Error).message, error);
  }
}

/** Adds tokens to tokenizer.json's that only tokenizer_config.json's added_tokens_decoder has. */
function withAddedTokens(json: TokenizerJson, config: TokenizerConfig): TokenizerJson {
  const own = json.added_tokens ?? [];
  const known = new Set(own.map(({ content }) => content));
  const plain = { lstrip: false, rstrip: false, normalized: false, single_word: false, special: false };
  const added = Object.entries(config.added_tokens_decoder ?? {}).flatMap(([id, token]) =>
    known.has(token.content) ? [] : [{ ...plain, ...token, id: Number(id) }],
  );
  return added.length === 0 ? json : { ...json, added_tokens: [...own, ...added] };
}

const withRustCuts = (json: TokenizerJson): TokenizerJson => ({
  ...json,
  pre_tokenizer: asRustCuts(json["pre_tokenizer"]),
});

/**
 * transformers 5 builds Llama's SentencePiece-like tokenizers from vocabulary and merges alone: spaces become "▁", one in
 * front of the text unless it starts with a space, and BOS by its flag. The file's own normalizer is not used.
 */
function asTransformersBuildsIt(json: TokenizerJson, config: TokenizerConfig): TokenizerJson {
  const llama = config.tokenizer_class === "LlamaTokenizer" || config.tokenizer_class === "LlamaTokenizerFast";
  if (!llama || json.model.type !== "BPE" || json.model.byte_fallback !== true) return json;
  const prefix = config.add_prefix_space ?? true;
  const scheme = config.legacy === true ? "always" : "first";
  return {
    ...json,
    normalizer: null,
    pre_tokenizer: {
      type: "Metaspace",
      replacement: "▁",
      prepend_scheme: prefix ? scheme : "never",
      split: false,
    },
    post_processor: aroundText({ bos_token: "<s>", eos_token: "</s>", ...config }, json.added_tokens ?? [], true),
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
  };
}

class JsonTokenizer implements Tokenizer {
  readonly bosId: number | null;
  readonly eosId: number | null;
  readonly padId: number | null;
  readonly addBos: boolean;
  readonly isQwen1 = false;
  readonly vocabSize: number;
  readonly chatTemplate: string | null;
  readonly chatTemplateRemark: string | null;
  readonly specialTokens: Readonly<Record<string, string>>;
  readonly #path: string;
  readonly #hf: HfTokenizer;
  readonly #cleanUp: boolean;
  /** Whether encoding takes time in proportion to the text. */
  readonly #patternsKnown: boolean;
  /** A second tokenizer without special tokens, made on first use. */
  #plain: HfTokenizer | null = null;
  readonly #makePlain: () => HfTokenizer;

  constructor(
    path: string,
    json: TokenizerJson,
    config: TokenizerConfig,
    chatTemplate: ChatTemplateSource,
    patternsKnown: boolean,
    sentencePiece: SentencePieceRules | null,
  ) {
    this.#path = path;
    this.#patternsKnown = patternsKnown;
    this.#hf = makeLibrary(json, config, sentencePiece);
    this.#makePlain = () =>
      makeLibrary(
        { ...json, added_tokens: json.added_tokens?.filter(({ special }) => special !== true) ?? [] },
        config,
        sentencePiece,
      );
    this.#cleanUp = config.clean_up_tokenization_spaces ?? false;
    this.specialTokens = Object.fromEntries(
      TOKEN_NAMES.flatMap((name) => {
        const token = config[name];
        return token === undefined || token === null ? [] : [[name, textOf(token)] as const];
      }),
    );
    const idOf = (name: string) => {
      const token = this.specialTokens[name];
      return token === undefined ? null : this.tokenId(token);
    };
    this.bosId = idOf("bos_token");
    this.eosId = idOf("eos_token");
    this.padId = idOf("pad_token");
    this.vocabSize = 1 + [...this.#hf.get_vocab().values()].reduce((most, id) => Math.max(most, id), -1);
    this.addBos = this.bosId !== null && this.encode("", { addSpecials: true })[0] === this.bosId;
    this.chatTemplate = chatTemplate.source;
    this.chatTemplateRemark = chatTemplate.remark;
  }

  encode(text: string, { specials = true, addSpecials = false }: EncodeOptions = {}): number[] {
    if (!specials) this.#plain ??= this.#makePlain();
    const hf = specials ? this.#hf : this.#plain!;
    const ids: number[] = this.#run(text.length, () => hf.encode(text, { add_special_tokens: addSpecials }).ids);
    if (!ids.every((id) => Number.isInteger(id) && id >= 0 && id < this.vocabSize)) {
      throw invalid(
        this.#path,
        `it has no token for a part of ${JSON.stringify(text.slice(0, 60))}, nor an unknown token`,
      );
    }
    return ids;
  }

  decode(ids: readonly number[], { skipSpecials = false }: DecodeOptions = {}): string {
    if (ids.length === 0) return "";
    return this.#run(ids.length, () =>
      this.#hf.decode([...ids], {
        skip_special_tokens: skipSpecials,
        clean_up_tokenization_spaces: this.#cleanUp,
      }),
    );
  }

  /** The library uses a file's parts without checking them, so whatever it throws at a text is the file's fault. */
  #run<T>(size: number, work: () => T): T {
    const more = size * MS_A_CHARACTER;
    try {
      if (this.#patternsKnown) return work();
      try {
        return withTimeLimit(PATTERN_MS + more, work);
      } catch (error) {
        if (!(error instanceof TimeLimitError)) throw error;
        // The process may have been stopped meanwhile, or the machine busy: the text is tried once more.
        return withTimeLimit(SECOND_PATTERN_MS + more, work);
      }
    } catch (error) {
      const message =
        error instanceof TimeLimitError
          ? `one of its patterns has no end on a text of ${size} characters or ids (${error.message})`
          : `it can't be used: ${(error as Error).message}`;
      throw invalid(this.#path, message, error);
    }
  }

  tokenId(token: string): number | null {
    return this.#hf.token_to_id(token) ?? null;
  }
}

/** What the library passes over, and other ids would come of. Error: PL_TOKENIZER_INVALID. */
function checkParts(path: string, { model, added_tokens: added }: TokenizerJson): void {
  const whole = added?.find((token) => token["single_word"] === true);
  if (whole !== undefined)
    throw invalid(path, `added token ${shown(whole.content)} has single_word, which is not supported`);
  const prefix = model["continuing_subword_prefix"] ?? "";
  if (model.type === "BPE" && prefix !== "") {
    throw invalid(path, `its byte-pair model has continuing_subword_prefix ${shown(prefix)}, which is not supported`);
  }
}

/** Ids are checked before the library allocates lists up to the largest. Error: PL_TOKENIZER_INVALID. */
function checkIds(path: string, { model, added_tokens: added }: TokenizerJson): void {
  const { vocab } = model;
  const ids = typeof vocab === "object" && vocab !== null && !Array.isArray(vocab) ? Object.entries(vocab) : [];
  for (const [token, id] of [...ids, ...(added ?? []).map(({ content, id }) => [content, id] as const)]) {
    if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < MAX_VOCABULARY) continue;
    throw invalid(path, `token ${shown(token)} has id ${shown(id)}, expected a whole number below ${MAX_VOCABULARY}`);
  }
}
