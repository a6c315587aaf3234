import type { Logger } from "../../common/log.ts";
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

export function templatesOf(config: TemplateSettings, modelDir: string, log: Logger): Templates {
  let tokenizer: Promise<Tokenizer> | null = null;
  const said = new Set<string>();
  const made = new Map<string, Promise<RowTemplate>>();
  const make = (loaded: Tokenizer, name: Config["template"]) => {
    const template = rowTemplate(loaded, {
      ...{ name, system: config.system, trainOn: config.train_on },
      ...dateOf(config),
    });
    if (template.remark !== null && !said.has(template.remark)) log.warn(template.remark);
    said.add(template.remark ?? "");
    return template;
  };
  return (name) => () => {
    tokenizer ??= loadTokenizer(modelDir);
    const known = made.get(name);
    if (known !== undefined) return known;
    const template = tokenizer.then((loaded) => make(loaded, name));
    made.set(name, template);
    return template;
  };
}
