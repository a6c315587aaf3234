import type { AddedToken } from "./added-tokens.ts";
import { type TokenizerConfig, textOf } from "./hf-config.ts";

/** tokenizer.json's post_processor that puts `before` and `after` around a text; null if both are empty. */
export function putAround(before: readonly AddedToken[], after: readonly AddedToken[]): object | null {
  const all = [...before, ...after];
  if (all.length === 0) return null;
  const piece = ({ content }: AddedToken) => ({ SpecialToken: { id: content, type_id: 0 } });
  return {
    type: "TemplateProcessing",
    single: [...before.map(piece), { Sequence: { id: "A", type_id: 0 } }, ...after.map(piece)],
    pair: [],
    special_tokens: Object.fromEntries(
      all.map(({ content, id }) => [content, { id: content, ids: [id], tokens: [content] }]),
    ),
  };
}

/** The post_processor that add_bos_token and add_eos_token ask for; BOS by `bosByDefault` where the first says nothing. */
export function aroundText(config: TokenizerConfig, added: readonly AddedToken[], bosByDefault = false): object | null {
  const find = (name: "bos_token" | "eos_token") => {
    const token = config[name] ?? null;
    return token === null ? [] : added.filter(({ content }) => content === textOf(token));
  };
  return putAround(
    (config.add_bos_token ?? bosByDefault) ? find("bos_token") : [],
    (config.add_eos_token ?? false) ? find("eos_token") : [],
  );
}
