import { join } from "node:path";
import { z } from "zod";
import { isFile } from "../../common/files.ts";
import { check, readJson, TOKEN_NAMES, type TokenizerConfig, type TokenizerJson, textOf } from "./hf-config.ts";

export type AddedToken = NonNullable<TokenizerJson["added_tokens"]>[number];
type TokenName = (typeof TOKEN_NAMES)[number];
/** Tokens that a tokenizer's class in transformers defines if tokenizer_config.json does not. */
export type TokenDefaults = Readonly<Partial<Record<TokenName, string>>>;

const addedTokensJson = z.record(z.string(), z.number().int().nonnegative());
const tokenList = z
  .union([z.array(z.union([z.string(), z.looseObject({ content: z.string() })])), z.record(z.string(), z.string())])
  .nullable()
  .optional();
const PLAIN = { lstrip: false, rstrip: false, normalized: false, single_word: false };

/** `config` with the class's own tokens where it has none. A token that it sets to null stays absent. */
export function withDefaults(config: TokenizerConfig, defaults: TokenDefaults): TokenizerConfig {
  return { ...defaults, ...config };
}

/**
 * The added tokens of a folder without tokenizer.json, in transformers' order: added_tokens_decoder (in older folders
 * added_tokens.json), `known`, the named tokens and the additional ones. What has no id takes the next one after the
 * vocabulary. Error: PL_TOKENIZER_INVALID.
 */
export async function addedTokens(
  dir: string,
  config: TokenizerConfig,
  vocabulary: ReadonlyMap<string, number>,
  known: readonly AddedToken[] = [],
): Promise<AddedToken[]> {
  const named = TOKEN_NAMES.flatMap((name) => {
    const token = config[name] ?? null;
    return token === null ? [] : [token];
  });
  const configPath = join(dir, "tokenizer_config.json");
  const lists = [config["additional_special_tokens"], config["extra_special_tokens"]].flatMap((list) => {
    const tokens = check(tokenList, configPath, list) ?? [];
    return Array.isArray(tokens) ? tokens : Object.values(tokens);
  });
  const special = [...named, ...lists];
  const specialTexts = new Set(special.map(textOf));

  const written = await writtenTokens(dir, config, specialTexts);
  const result = new Map(written.map((token) => [token.content, token]));
  for (const token of known) if (!result.has(token.content)) result.set(token.content, token);
  let next = 1 + [...vocabulary.values(), ...written.map(({ id }) => id)].reduce((most, id) => Math.max(most, id), -1);
  for (const token of special) {
    const content = textOf(token);
    const before = result.get(content);
    const id = before?.id ?? vocabulary.get(content) ?? next++;
    const own = typeof token === "string" ? {} : token;
    result.set(content, { ...PLAIN, ...own, ...before, content, id, special: true });
  }
  return [...result.values()].sort((a, b) => a.id - b.id);
}

async function writtenTokens(
  dir: string,
  config: TokenizerConfig,
  special: ReadonlySet<string>,
): Promise<AddedToken[]> {
  if (config.added_tokens_decoder !== undefined) {
    const entries = Object.entries(config.added_tokens_decoder);
    return entries.map(([id, token]) => ({ ...PLAIN, special: false, ...token, id: Number(id) }));
  }
  const path = join(dir, "added_tokens.json");
  if (!(await isFile(path))) return [];
  const entries = Object.entries(check(addedTokensJson, path, await readJson(path)));
  return entries.map(([content, id]) => ({ ...PLAIN, content, id, special: special.has(content) }));
}
