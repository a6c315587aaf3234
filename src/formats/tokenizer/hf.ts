import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Tokenizer as HfTokenizer } from "@huggingface/tokenizers";
import { z } from "zod";
import { PipeloraError } from "../../common/errors.ts";
import { isFile, readJsonFile } from "../../common/files.ts";
import { lfsPointer } from "../../common/lfs.ts";
import { shown } from "../../common/shown.ts";
import { TimeLimitError, withTimeLimit } from "../../common/time-limit.ts";
import { hasOnlyKnownPatterns } from "./known-patterns.ts";
import { asRustCuts } from "./patterns.ts";
import type { DecodeOptions, EncodeOptions, Tokenizer } from "./tokenizer.ts";

const MAX_FILE_BYTES = 512 * 1024 * 1024;
/** Far above any tokenizer's ids. */
const MAX_VOCABULARY = 1 << 24;
/** Longest times that a text may take whose tokenizer has patterns that nobody knows: real ones take some milliseconds. */
const PATTERN_MS = 500;
const SECOND_PATTERN_MS = 2_000;
const MS_A_CHARACTER = 0.05;

const addedToken = z.looseObject({
  id: z.number().int().nonnegative(),
  content: z.string(),
  special: z.boolean().optional(),
});
const tokenizerJson = z.looseObject({
  added_tokens: z.array(addedToken).nullable().optional(),
  model: z.looseObject({ type: z.string().optional(), byte_fallback: z.boolean().nullable().optional() }),
});
type TokenizerJson = z.infer<typeof tokenizerJson>;

const tokenText = z
  .union([z.string(), z.looseObject({ content: z.string() })])
  .nullable()
  .optional();
const specialTokensMap = z.looseObject({
  bos_token: tokenText,
  eos_token: tokenText,
  pad_token: tokenText,
  unk_token: tokenText,
});
const namedTemplates = z.array(z.looseObject({ name: z.string(), template: z.string() }));
const tokenizerConfig = z.looseObject({
  added_tokens_decoder: z.record(z.string().regex(/^\d{1,9}$/), z.looseObject({ content: z.string() })).optional(),
  tokenizer_class: z.string().nullable().optional(),
  bos_token: tokenText,
  eos_token: tokenText,
  pad_token: tokenText,
  unk_token: tokenText,
  add_bos_token: z.boolean().nullable().optional(),
  add_eos_token: z.boolean().nullable().optional(),
  add_prefix_space: z.boolean().nullable().optional(),
  legacy: z.boolean().nullable().optional(),
  clean_up_tokenization_spaces: z.boolean().nullable().optional(),
  chat_template: z.union([z.string(), namedTemplates]).nullable().optional(),
});
type TokenizerConfig = z.infer<typeof tokenizerConfig>;

const TOKEN_NAMES = ["bos_token", "eos_token", "pad_token", "unk_token"] as const;

/**
 * Reads tokenizer.json with tokenizer_config.json beside it (and chat_template.jinja where the template has a file of its
 * own), under transformers 5's meaning of the two. Error: PL_TOKENIZER_INVALID.
 */
export async function loadHfTokenizer(dir: string): Promise<Tokenizer> {
  const path = join(dir, "tokenizer.json");
  const json = check(tokenizerJson, path, await readJson(path));
  const configPath = join(dir, "tokenizer_config.json");
  const written = check(tokenizerConfig, configPath, (await isFile(configPath)) ? await readJson(configPath) : {});
  const config = await withSpecialTokens(dir, written);
  const templatePath = join(dir, "chat_template.jinja");
  const template = (await isFile(templatePath)) ? await readText(templatePath) : configTemplate(config);
  try {
    const { normalizer, pre_tokenizer: cuts, decoder } = json;
    const known = hasOnlyKnownPatterns({ normalizer, cuts, decoder });
    const built = asTransformersBuildsIt(withRustCuts(withAddedTokens(json, config)), config);
    checkIds(path, built);
    return new JsonTokenizer(path, built, config, template, known);
  } catch (error) {
    if (error instanceof PipeloraError) throw error;
    throw invalid(path, (error as Error).message, error);
  }
}

/**
 * transformers' rule for older folders: where tokenizer_config.json has no added_tokens_decoder, tokens that it does not name
 * come from special_tokens_map.json.
 */
async function withSpecialTokens(dir: string, config: TokenizerConfig): Promise<TokenizerConfig> {
  const path = join(dir, "special_tokens_map.json");
  if (config["added_tokens_decoder"] !== undefined || !(await isFile(path))) return config;
  const map = check(specialTokensMap, path, await readJson(path));
  const missing = TOKEN_NAMES.filter((name) => !Object.hasOwn(config, name) && (map[name] ?? null) !== null);
  return { ...config, ...Object.fromEntries(missing.map((name) => [name, map[name]])) };
}

/** Tokens that stand in tokenizer_config.json's added_tokens_decoder alone, among tokenizer.json's. */
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
  const special = (token: string, id: number) => ({ [token]: { id: token, ids: [id], tokens: [token] } });
  const bos = (config.add_bos_token ?? true) ? textOf(config.bos_token ?? "<s>") : null;
  const eos = (config.add_eos_token ?? false) ? textOf(config.eos_token ?? "</s>") : null;
  const idOf = (token: string) => json.added_tokens?.find(({ content }) => content === token)?.id ?? null;
  const [bosId, eosId] = [bos === null ? null : idOf(bos), eos === null ? null : idOf(eos)];
  const piece = (token: string) => ({ SpecialToken: { id: token, type_id: 0 } });
  return {
    ...json,
    normalizer: null,
    pre_tokenizer: {
      type: "Metaspace",
      replacement: "▁",
      prepend_scheme: prefix ? scheme : "never",
      split: false,
    },
    post_processor: {
      type: "TemplateProcessing",
      single: [
        ...(bosId === null ? [] : [piece(bos!)]),
        { Sequence: { id: "A", type_id: 0 } },
        ...(eosId === null ? [] : [piece(eos!)]),
      ],
      pair: [],
      special_tokens: {
        ...(bosId === null ? {} : special(bos!, bosId)),
        ...(eosId === null ? {} : special(eos!, eosId)),
      },
    },
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
  readonly specialTokens: Readonly<Record<string, string>>;
  readonly #path: string;
  readonly #hf: HfTokenizer;
  readonly #cleanUp: boolean;
  /** Whether time is taken in proportion to the text. */
  readonly #patternsKnown: boolean;
  /** Knows no special tokens: made when first asked for. */
  #plain: HfTokenizer | null = null;
  readonly #makePlain: () => HfTokenizer;

  constructor(
    path: string,
    json: TokenizerJson,
    config: TokenizerConfig,
    chatTemplate: string | null,
    patternsKnown: boolean,
  ) {
    this.#path = path;
    this.#patternsKnown = patternsKnown;
    this.#hf = new HfTokenizer(json, config);
    this.#makePlain = () =>
      new HfTokenizer(
        { ...json, added_tokens: json.added_tokens?.filter(({ special }) => special !== true) ?? [] },
        config,
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
    this.chatTemplate = chatTemplate;
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

  /** What the library throws at a text is the file's fault: its parts are not checked before they are used. */
  #run<T>(size: number, work: () => T): T {
    const more = size * MS_A_CHARACTER;
    try {
      if (this.#patternsKnown) return work();
      try {
        return withTimeLimit(PATTERN_MS + more, work);
      } catch (error) {
        if (!(error instanceof TimeLimitError)) throw error;
        // The process may have been stopped meanwhile, or the machine busy.
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

const textOf = (token: string | { content: string }) => (typeof token === "string" ? token : token.content);

/** Ids must be usable before the library fills lists up to them. Error: PL_TOKENIZER_INVALID. */
function checkIds(path: string, { model, added_tokens: added }: TokenizerJson): void {
  const { vocab } = model;
  const ids = typeof vocab === "object" && vocab !== null && !Array.isArray(vocab) ? Object.entries(vocab) : [];
  for (const [token, id] of [...ids, ...(added ?? []).map(({ content, id }) => [content, id] as const)]) {
    if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < MAX_VOCABULARY) continue;
    throw invalid(path, `token ${shown(token)} has id ${shown(id)}, expected a whole number below ${MAX_VOCABULARY}`);
  }
}

function configTemplate(config: TokenizerConfig): string | null {
  const template = config.chat_template ?? null;
  if (template === null || typeof template === "string") return template;
  return template.find(({ name }) => name === "default")?.template ?? null;
}

async function readText(path: string): Promise<string> {
  const bytes = await readFile(path);
  const pointer = lfsPointer(bytes);
  if (pointer !== null) throw invalid(path, pointer);
  return bytes.toString("utf8");
}

async function readJson(path: string): Promise<unknown> {
  try {
    return await readJsonFile(path, MAX_FILE_BYTES);
  } catch (error) {
    throw invalid(path, (error as Error).message, error);
  }
}

function check<T extends z.ZodType>(schema: T, path: string, value: unknown): z.infer<T> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw invalid(path, `"${issue?.path.join(".")}": ${issue?.message ?? "malformed"}`);
}

function invalid(path: string, message: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_TOKENIZER_INVALID", `${path}: ${message.replace(/\.$/, "")}.`, {
    hint: "Fetch the tokenizer's files again from where the model came.",
    ...(cause === undefined ? {} : { cause }),
  });
}
