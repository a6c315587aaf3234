import type { Config } from "../../config/options.ts";
import { type RowTemplate, rowTemplate } from "../../data/templates.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import type { Tokenizer } from "../../formats/tokenizer/tokenizer.ts";

export type TemplateSettings = Pick<Config, "system" | "train_on" | "template_date">;

/** A date without a time is that day's beginning here, not in Greenwich. */
export function dateOf({ template_date: date }: Pick<Config, "template_date">): { now?: Date } {
  if (date === null) return {};
  return { now: new Date(/^\d{4}-\d\d-\d\d$/.test(date) ? `${date}T00:00:00` : date) };
}

/** Templates by name over one tokenizer, which is loaded only when text comes, so that ready ids need none. */
export type Templates = (name: Config["template"]) => () => Promise<RowTemplate>;

export function templatesOf(config: TemplateSettings, modelDir: string): Templates {
  let tokenizer: Promise<Tokenizer> | null = null;
  const made = new Map<string, Promise<RowTemplate>>();
  return (name) => () => {
    tokenizer ??= loadTokenizer(modelDir);
    const known = made.get(name);
    if (known !== undefined) return known;
    const settings = { name, system: config.system, trainOn: config.train_on, ...dateOf(config) };
    const template = tokenizer.then((loaded) => rowTemplate(loaded, settings));
    made.set(name, template);
    return template;
  };
}
