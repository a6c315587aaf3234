import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { PipeloraError } from "../../common/errors.ts";
import { isFile, readJsonFile } from "../../common/files.ts";
import { lfsPointer } from "../../common/lfs.ts";

const MAX_FILE_BYTES = 512 * 1024 * 1024;

export const addedToken = z.looseObject({
  id: z.number().int().nonnegative(),
  content: z.string(),
  special: z.boolean().optional(),
});
export const tokenizerJson = z.looseObject({
  added_tokens: z.array(addedToken).nullable().optional(),
  model: z.looseObject({ type: z.string().optional(), byte_fallback: z.boolean().nullable().optional() }),
});
export type TokenizerJson = z.infer<typeof tokenizerJson>;

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
export type TokenizerConfig = z.infer<typeof tokenizerConfig>;

export const TOKEN_NAMES = ["bos_token", "eos_token", "pad_token", "unk_token"] as const;

/** tokenizer_config.json, with what older folders keep in files of their own. Error: PL_TOKENIZER_INVALID. */
export async function readTokenizerConfig(dir: string): Promise<TokenizerConfig> {
  const path = join(dir, "tokenizer_config.json");
  const written = check(tokenizerConfig, path, (await isFile(path)) ? await readJson(path) : {});
  return withSpecialTokens(dir, written);
}

/** chat_template.jinja where the template has a file of its own, else the configuration's. */
export async function readChatTemplate(dir: string, config: TokenizerConfig): Promise<string | null> {
  const path = join(dir, "chat_template.jinja");
  return (await isFile(path)) ? await readText(path) : configTemplate(config);
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

export const textOf = (token: string | { content: string }) => (typeof token === "string" ? token : token.content);

function configTemplate(config: TokenizerConfig): string | null {
  const template = config.chat_template ?? null;
  if (template === null || typeof template === "string") return template;
  return template.find(({ name }) => name === "default")?.template ?? null;
}

export async function readText(path: string): Promise<string> {
  const bytes = await readFile(path);
  const pointer = lfsPointer(bytes);
  if (pointer !== null) throw invalid(path, pointer);
  return bytes.toString("utf8");
}

export async function readJson(path: string): Promise<unknown> {
  try {
    return await readJsonFile(path, MAX_FILE_BYTES);
  } catch (error) {
    throw invalid(path, (error as Error).message, error);
  }
}

export function check<T extends z.ZodType>(schema: T, path: string, value: unknown): z.infer<T> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw invalid(path, `"${issue?.path.join(".")}": ${issue?.message ?? "malformed"}`);
}

export function invalid(path: string, message: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_TOKENIZER_INVALID", `${path}: ${message.replace(/\.$/, "")}.`, {
    hint: "Fetch the tokenizer's files again from where the model came.",
    ...(cause === undefined ? {} : { cause }),
  });
}
