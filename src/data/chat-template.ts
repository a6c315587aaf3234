import { PipeloraError } from "../common/errors.ts";
import { JinjaTemplate, type Rendering, TemplateError } from "../formats/jinja/index.ts";
import type { Tokenizer } from "../formats/tokenizer/tokenizer.ts";
import type { ChatMessage } from "./readers/messages.ts";
import { IGNORED } from "./row-store.ts";
import { assistantSpans, type Span } from "./spans.ts";
import { TokenBorders } from "./token-borders.ts";

/** ChatML, as Qwen (v1) was trained with: it ships no template of its own. */
export const CHATML =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

export interface EncodedChat {
  readonly tokens: readonly number[];
  readonly labels: readonly number[];
  /** Of each token's label; absent: 1 everywhere. */
  readonly weights?: readonly number[] | null;
  /** Whether text of an assistant that was to be trained on is missing from the rendered text that is trained on. */
  readonly textLost?: boolean;
}

/** What the template gets beside the messages. */
export interface ChatExtras {
  readonly tools?: readonly unknown[] | null;
  /** Further names that it may ask for, such as enable_thinking. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

/** Which of the assistant's turns are trained on. */
export type TrainOn = "all" | "last";

/** A model's chat template over its tokenizer. */
export class ChatTemplate {
  readonly #tokenizer: Tokenizer;
  readonly #template: JinjaTemplate;
  readonly #now: Date;

  /**
   * `source`: the tokenizer's own template, or CHATML. `now`: the date that templates may write. Error: PL_TEMPLATE_INVALID
   * where it can't be parsed.
   */
  constructor(tokenizer: Tokenizer, source: string, now: Date) {
    this.#tokenizer = tokenizer;
    this.#now = now;
    try {
      this.#template = new JinjaTemplate(source);
    } catch (error) {
      if (!(error instanceof TemplateError)) throw error;
      throw templateError(
        `The chat template can't be parsed: ${error.message}`,
        "Use a tokenizer whose template is valid Jinja.",
        error,
      );
    }
  }

  /** Error: PL_TEMPLATE_INVALID, with the template's own words where it raises an exception. */
  render(messages: readonly ChatMessage[], addGenerationPrompt: boolean, extras: ChatExtras = {}): Rendering {
    try {
      return this.#template.render(
        {
          ...extras.variables,
          ...this.#tokenizer.specialTokens,
          messages: messages.map(({ lossWeight: _, ...message }) => message),
          add_generation_prompt: addGenerationPrompt,
          tools: extras.tools ?? null,
          documents: null,
        },
        this.#now,
      );
    } catch (error) {
      if (!(error instanceof TemplateError)) throw error;
      const system = messages[0]?.role === "system" && /system/i.test(error.message);
      throw templateError(
        `The chat template failed on ${messages.map(({ role }) => role).join(", ")}: ${error.message}`,
        system
          ? "This template takes no system message: put its text into the first user message."
          : "Most templates want user and assistant in turn, and the system message first or not at all.",
        error,
      );
    }
  }

  /** Ids of a prompt that the model is to answer. */
  encodePrompt(messages: readonly ChatMessage[], extras: ChatExtras = {}): number[] {
    return this.#tokenizer.encode(this.render(messages, true, extras).text);
  }

  /**
   * Ids of a whole conversation as the template renders it. Labels cover the assistant's turns and their end tokens (assistantSpans), each
   * with its message's weight. A token that crosses the border belongs to the turn.
   */
  encode(messages: readonly ChatMessage[], trainOn: TrainOn = "all", extras: ChatExtras = {}): EncodedChat {
    const whole = this.render(messages, false, extras);
    const { text } = whole;
    const system = messages[0]?.role === "system" ? firstLine(messages[0].content) : "";
    if (!text.includes(system)) {
      throw templateError(
        "The chat template leaves out the system message once an answer follows",
        "Put its text into the first user message.",
      );
    }
    const spans = assistantSpans(messages, whole, (given, prompt) => this.render(given, prompt, extras));
    const lastTurn = messages.findLastIndex(({ role }) => role === "assistant");
    const trained = spans.filter(
      ({ message }) => weightOf(messages[message]) > 0 && (trainOn === "all" || message === lastTurn),
    );
    const tokens = this.#tokenizer.encode(text);
    const labels = new Array<number>(tokens.length).fill(IGNORED);
    const weighted = trained.some(({ message }) => weightOf(messages[message]) !== 1);
    const weights = weighted ? new Array<number>(tokens.length).fill(1) : null;
    const borders = new TokenBorders(this.#tokenizer, text, tokens);
    for (const { message, begin, end } of trained) {
      const first = borders.tokenAt(begin, false);
      const last = borders.tokenAt(end, true);
      for (let t = first; t < last; t++) labels[t] = tokens[t]!;
      weights?.fill(weightOf(messages[message]), first, Math.max(first, last));
    }
    return { tokens, labels, weights, textLost: this.#loses(messages, trained, text) };
  }

  #loses(messages: readonly ChatMessage[], trained: readonly Span[], text: string): boolean {
    const written = new Map<number, string>();
    for (const { message, begin, end } of trained) {
      written.set(message, (written.get(message) ?? "") + text.slice(begin, end));
    }
    return [...written].some(([index, own]) => {
      const { content, reasoning_content: reasoning } = messages[index]!;
      const parts = [content, typeof reasoning === "string" ? reasoning : ""];
      // Templates change the white space around the reasoning, so its lines are compared, not the whole text.
      return parts.some((part) => part.split("\n").some((line) => !own.includes(line.trim())));
    });
  }
}

const weightOf = (message: ChatMessage | undefined) => message?.lossWeight ?? 1;

const firstLine = (text: string) => text.trim().split("\n")[0]!.trim();

export function templateError(message: string, hint: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_TEMPLATE_INVALID", `${message.replace(/\.$/, "")}.`, {
    hint,
    ...(cause === undefined ? {} : { cause }),
  });
}
