import { join } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import { isFile, readJsonFile } from "../../common/files.ts";
import { writeTextAtomically } from "../atomic-file.ts";

const MAX_BYTES = 256 << 20;
/** As transformers' add_tokens makes of a text. */
const FLAGS = { single_word: false, lstrip: false, rstrip: false, normalized: true, special: false };

type Json = Record<string, unknown>;

/** Error: PL_TOKENIZER_INVALID for qwen.tiktoken, which can't hold added tokens. */
export async function refuseClosedVocabulary(dir: string): Promise<void> {
  if (!(await isFile(join(dir, "qwen.tiktoken")))) return;
  throw new PipeloraError("PL_TOKENIZER_INVALID", `${dir}: qwen.tiktoken has no place for tokens of one's own.`, {
    hint: "Use one of <|extra_0|> to <|extra_204|>, which Qwen has for that.",
  });
}

/**
 * Adds tokens to every tokenizer file of a folder that lists added tokens: tokenizer.json, tokenizer_config.json's added_tokens_decoder,
 * added_tokens.json. Returns the names of the files changed.
 */
export async function appendTokens(dir: string, ids: Readonly<Record<string, number>>): Promise<string[]> {
  const changed: string[] = [];
  const entries = Object.entries(ids);
  const edit = async (name: string, change: (json: Json) => Json | null, made: Json | null = null) => {
    const path = join(dir, name);
    const there = await isFile(path);
    if (!there && made === null) return;
    const after = change(there ? ((await readJsonFile(path, MAX_BYTES)) as Json) : made!);
    if (after === null) return;
    await writeTextAtomically(path, `${JSON.stringify(after, null, 2)}\n`);
    changed.push(name);
  };
  await edit("tokenizer.json", (json) => {
    const own = (json["added_tokens"] ?? []) as unknown[];
    return { ...json, added_tokens: [...own, ...entries.map(([content, id]) => ({ id, content, ...FLAGS }))] };
  });
  await edit("tokenizer_config.json", (json) => {
    const own = json["added_tokens_decoder"];
    if (own === undefined) return null;
    const added = Object.fromEntries(entries.map(([content, id]) => [id, { content, ...FLAGS }]));
    return { ...json, added_tokens_decoder: { ...(own as Json), ...added } };
  });
  await edit("added_tokens.json", (json) => ({ ...json, ...ids }), changed.length === 0 ? {} : null);
  return changed;
}
