import type { Config } from "../../config/options.ts";
import type { ChatMessage } from "../../data/readers/messages.ts";
import type { RowTemplate } from "../../data/templates.ts";
import type { Tokenizer } from "../../formats/tokenizer/tokenizer.ts";
import { type Reply, reply } from "../../generation/reply.ts";
import type { Scheduler } from "../../generation/scheduler.ts";
import type { ModelSpec } from "../../models/spec.ts";
import { type ChoiceSettings, tokenChoice } from "./token-choice.ts";

/** How tokens are chosen, and what ends a reply. */
export type ReplySettings = ChoiceSettings & Pick<Config, "max_new_tokens" | "stop_ids" | "stop">;

/** A model with what turns its ids into text. */
export interface SpokenModel {
  readonly spec: ModelSpec;
  /** null for a model folder without one, which can still continue ids. */
  readonly tokenizer: Tokenizer | null;
  readonly template: RowTemplate | null;
}

/** Ids that end a model's replies. */
export function stopIdsOf({ spec, template }: Pick<SpokenModel, "spec" | "template">): Set<number> {
  return new Set([...spec.eosTokenIds, ...(template?.stopIds ?? [])]);
}

/** Replies of one model: settings and stop ids in one place. */
export class Conversation {
  readonly #scheduler: Scheduler;
  readonly #config: ReplySettings;
  readonly #tokenizer: Tokenizer | null;
  readonly #stopIds: ReadonlySet<number>;

  constructor(scheduler: Scheduler, config: ReplySettings, model: SpokenModel) {
    this.#scheduler = scheduler;
    this.#config = config;
    this.#tokenizer = model.tokenizer;
    this.#stopIds = config.stop_ids === null ? stopIdsOf(model) : new Set(config.stop_ids);
  }

  /** Continues a prompt. `onText` gets the text as it comes, whole characters only. An aborted one ends with what it has. */
  async reply(prompt: readonly number[], onText: (text: string) => void, cancelled?: AbortSignal): Promise<Reply> {
    const room = this.#scheduler.mostTokens - prompt.length;
    const request = {
      prompt,
      // Limited by the model's number of positions. A prompt that leaves no room is refused.
      maxNewTokens: Math.max(1, Math.min(this.#config.max_new_tokens, room)),
      stopIds: this.#stopIds,
      stops: this.#config.stop ?? [],
      choice: tokenChoice(this.#config),
      cancelled: () => cancelled?.aborted === true,
    };
    return reply(this.#scheduler, this.#tokenizer, request, ({ text }) => {
      if (text !== "") onText(text);
    });
  }
}

/** A chat's turns so far, and the prompt for the next. */
export class ChatHistory {
  readonly #template: RowTemplate;
  #messages: ChatMessage[] = [];

  constructor(template: RowTemplate) {
    this.#template = template;
  }

  ask(question: string): number[] {
    this.#messages.push({ role: "user", content: question });
    return this.#template.encodePrompt(this.#messages);
  }

  answered(text: string): void {
    this.#messages.push({ role: "assistant", content: text });
  }

  clear(): void {
    this.#messages = [];
  }
}
