import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import type { RowSet } from "../../data/encode.ts";
import { type RowTemplate, rowTemplate } from "../../data/templates.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import type { Tokenizer } from "../../formats/tokenizer/tokenizer.ts";

export type TemplateSettings = Pick<Config, "system" | "train_on" | "template_date">;

/** A date without a time means the start of that day in local time, not in UTC. */
export function dateOf({ template_date: date }: Pick<Config, "template_date">): { now?: Date } {
  if (date === null) return {};
  return { now: new Date(/^\d{4}-\d\d-\d\d$/.test(date) ? `${date}T00:00:00` : date) };
}

/** Templates by name over one tokenizer. It is loaded when the first text comes, so that ready ids need none. */
export type Templates = (name: Config["template"]) => Pick<RowSet, "template" | "recipe" | "say">;

/** A warning about a template is given once, however many sets use it. */
export function templatesOf(config: TemplateSettings, modelDir: string, log: Logger): Templates {
  let tokenizer: Promise<Tokenizer> | null = null;
  const said = new Set<string>();
  const say = (remark: string) => {
    if (!said.has(remark)) log.warn(remark);
    said.add(remark);
  };
  const { now = new Date() } = dateOf(config);
  const made = new Map<string, Promise<RowTemplate>>();
  return (name) => {
    const settings = { name, system: config.system, trainOn: config.train_on };
    const template = () => {
      tokenizer ??= loadTokenizer(modelDir);
      const known = made.get(name) ?? tokenizer.then((loaded) => rowTemplate(loaded, { ...settings, now }));
      made.set(name, known);
      return known;
    };
    return { template, recipe: { ...settings, modelDir, now: now.getTime() }, say };
  };
}
