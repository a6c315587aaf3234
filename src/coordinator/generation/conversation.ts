import type { Config } from "../../config/options.ts";
import type { ChatMessage } from "../../data/readers/messages.ts";
import type { RowTemplate } from "../../data/templates.ts";
import { StreamDecoder, type Tokenizer } from "../../formats/tokenizer/tokenizer.ts";
import type { ModelSpec } from "../../models/spec.ts";
import type { Pipeline } from "../cluster/pipeline.ts";

export interface Reply {
  /** New ids, an end token included. */
  readonly ids: readonly number[];
  /** null without a tokenizer. */
  readonly text: string | null;
}

/** How tokens are chosen. */
export type ReplySettings = Pick<
  Config,
  "max_new_tokens" | "do_sample" | "temperature" | "top_p" | "top_k" | "repetition_penalty" | "stop_ids" | "seed"
>;

/** A model with what turns its ids into text. */
export interface SpokenModel {
  readonly spec: ModelSpec;
  /** null for a model folder without one, which can still continue ids. */
  readonly tokenizer: Tokenizer | null;
  readonly template: RowTemplate | null;
}

/** Generates replies over the workers: settings and stop ids in one place. */
export class Conversation {
  readonly #pipeline: Pipeline;
  readonly #config: ReplySettings;
  readonly #tokenizer: Tokenizer | null;
  readonly #stopIds: readonly number[];

  constructor(pipeline: Pipeline, config: ReplySettings, { spec, tokenizer, template }: SpokenModel) {
    this.#pipeline = pipeline;
    this.#config = config;
    this.#tokenizer = tokenizer;
    this.#stopIds = config.stop_ids ?? [...spec.eosTokenIds, ...(template?.stopIds ?? [])];
  }

  /** Continues a prompt. `onText` gets the text as it comes, whole characters only. */
  async reply(prompt: readonly number[], onText: (text: string) => void, cancelled?: AbortSignal): Promise<Reply> {
    const config = this.#config;
    const decoder = this.#tokenizer === null ? null : new StreamDecoder(this.#tokenizer);
    const ids: number[] = [];
    let text = "";
    const show = (piece: string) => {
      text += piece;
      if (piece !== "") onText(piece);
    };
    await this.#pipeline.generate(
      {
        prompt: [...prompt],
        maxNewTokens: config.max_new_tokens,
        doSample: config.do_sample,
        temperature: config.temperature,
        topP: config.top_p,
        topK: config.top_k,
        repetitionPenalty: config.repetition_penalty,
        stopIds: [...this.#stopIds],
        seed: config.seed,
      },
      (token) => {
        ids.push(token);
        if (decoder !== null && !this.#stopIds.includes(token)) show(decoder.push(token));
      },
      cancelled,
    );
    if (decoder !== null) show(decoder.end());
    return { ids, text: decoder === null ? null : text };
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
