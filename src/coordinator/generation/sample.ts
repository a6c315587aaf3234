import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { type RowTemplate, rowTemplate } from "../../data/templates.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import type { Tokenizer } from "../../formats/tokenizer/tokenizer.ts";
import { type ModelSettings, type ModelSetup, setUpModel } from "../planning/model-setup.ts";
import { dateOf } from "../planning/row-templates.ts";
import { Conversation, type ReplySettings } from "./conversation.ts";
import { type ScheduledSettings, type WantedRoom, withScheduler } from "./scheduled-model.ts";

export type TemplateChoice = Pick<Config, "template" | "system" | "template_date" | "raw">;

export type SampleSettings = ModelSettings & ScheduledSettings & ReplySettings & TemplateChoice;

/** What turns prompts into ids and replies into text. */
export interface Language {
  /** null for a model folder without one, which can still continue ids. */
  readonly tokenizer: Tokenizer | null;
  /** null where none is wanted. */
  readonly template: RowTemplate | null;
}

export interface SamplingSession extends Language {
  readonly conversation: Conversation;
}

/**
 * The model's tokenizer and template. `needsText`: both must be there, the template unless prompts are raw. Errors: PL_TOKENIZER_INVALID,
 * PL_TEMPLATE_INVALID.
 */
export async function languageOf(
  { dir }: Pick<ModelSetup, "dir">,
  config: TemplateChoice,
  needsText: boolean,
  log: Logger,
): Promise<Language> {
  const tokenizer = await loadTokenizer(dir).catch((error: unknown) => {
    if (needsText) throw error;
    return null;
  });
  if (tokenizer === null || !needsText || config.raw) return { tokenizer, template: null };
  const template = templateOf(tokenizer, config, log);
  template.requireChat();
  return { tokenizer, template };
}

/** The same of a model that may know text alone: its template then writes no turns. Error: PL_TOKENIZER_INVALID. */
export async function servedLanguage(
  { dir }: Pick<ModelSetup, "dir">,
  config: Omit<TemplateChoice, "raw">,
  log: Logger,
): Promise<{ tokenizer: Tokenizer; template: RowTemplate }> {
  const tokenizer = await loadTokenizer(dir);
  const template = templateOf(tokenizer, config, log);
  if (template.source === null) log.warn("the tokenizer has no chat template: only /v1/completions answers");
  return { tokenizer, template };
}

function templateOf(tokenizer: Tokenizer, config: Omit<TemplateChoice, "raw">, log: Logger): RowTemplate {
  const template = rowTemplate(tokenizer, { name: config.template, system: config.system, ...dateOf(config) });
  if (template.remark !== null) log.warn(template.remark);
  return template;
}

/** Checks the model, loads it over the workers and calls `use`: one reply at a time. `tokens`: most of prompt and reply together. */
export async function withModel<T>(
  config: SampleSettings,
  log: Logger,
  options: { readonly tokens: number; readonly needsText: boolean },
  use: (session: SamplingSession) => Promise<T>,
): Promise<T> {
  const setup = await setUpModel(config, log, { weights: true, lora: false });
  for (const warning of setup.warnings) log.warn(warning);
  const language = await languageOf(setup, config, options.needsText, log);
  const room: WantedRoom = { sequences: 1, rows: Math.min(options.tokens, setup.spec.maxPositions), waiting: 1 };
  return withScheduler(config, log, { setup, room }, (scheduler) =>
    use({ conversation: new Conversation(scheduler, config, { spec: setup.spec, ...language }), ...language }),
  );
}
