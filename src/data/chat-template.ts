import { Template } from "@huggingface/jinja";
import { PipeloraError } from "../common/errors.ts";
import type { Tokenizer } from "../formats/tokenizer/tokenizer.ts";
import { IGNORED } from "./dataset.ts";
import type { ChatMessage } from "./readers/rows.ts";

/** ChatML, as Qwen (v1) was trained with: it ships no template of its own. */
export const CHATML =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

export interface EncodedChat {
  readonly tokens: number[];
  readonly labels: number[];
}

/** A model's chat template over its tokenizer. */
export class ChatTemplate {
  readonly #tokenizer: Tokenizer;
  readonly #template: Template;

  /** `source`: the tokenizer's own template, or CHATML. Error: PL_TEMPLATE_INVALID where it can't be parsed. */
  constructor(tokenizer: Tokenizer, source: string) {
    this.#tokenizer = tokenizer;
    try {
      this.#template = new Template(source);
    } catch (error) {
      throw invalid(
        `The chat template can't be parsed: ${(error as Error).message}`,
        "Use a tokenizer whose template is valid Jinja.",
        error,
      );
    }
  }

  /** Error: PL_TEMPLATE_INVALID, with the template's own words where it raises an exception. */
  render(messages: readonly ChatMessage[], addGenerationPrompt: boolean): string {
    try {
      return this.#template.render({
        messages,
        add_generation_prompt: addGenerationPrompt,
        tools: null,
        documents: null,
        ...this.#tokenizer.specialTokens,
      });
    } catch (error) {
      throw invalid(
        `The chat template failed on ${messages.map(({ role }) => role).join(", ")}: ${(error as Error).message}`,
        "Most templates want user and assistant in turn, and the system message first or not at all.",
        error,
      );
    }
  }

  /** Ids of a prompt that the model is to answer. */
  encodePrompt(messages: readonly ChatMessage[]): number[] {
    return this.#tokenizer.encode(this.render(messages, true));
  }

  /**
   * Ids of a whole conversation; labels are the assistant's turns (with what ends them), found by rendering the
   * conversation up to each turn. A token that straddles the border belongs to the turn.
   */
  encode(messages: readonly ChatMessage[]): EncodedChat {
    const text = this.render(messages, false);
    const tokens = this.#tokenizer.encode(text);
    const labels = new Array<number>(tokens.length).fill(IGNORED);
    messages.forEach(({ role }, index) => {
      if (role !== "assistant") return;
      const begin = this.#prefixTokens(messages, index, true, text, tokens);
      const end =
        index === messages.length - 1 ? tokens.length : this.#prefixTokens(messages, index + 1, false, text, tokens);
      for (let t = begin; t < end; t++) labels[t] = tokens[t]!;
    });
    return { tokens, labels };
  }

  /** How many of `tokens` the first `count` messages make up. */
  #prefixTokens(
    messages: readonly ChatMessage[],
    count: number,
    addGenerationPrompt: boolean,
    text: string,
    tokens: readonly number[],
  ): number {
    const prefix = this.render(messages.slice(0, count), addGenerationPrompt);
    if (!text.startsWith(prefix)) {
      throw invalid(
        `The chat template writes message ${count} otherwise once more follow, so its tokens can't be told apart`,
        "Split the conversation into rows with one assistant turn each.",
      );
    }
    const ids = this.#tokenizer.encode(prefix);
    const differs = ids.findIndex((id, t) => id !== tokens[t]);
    return differs < 0 ? ids.length : differs;
  }
}

function invalid(message: string, hint: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_TEMPLATE_INVALID", `${message.replace(/\.$/, "")}.`, {
    hint,
    ...(cause === undefined ? {} : { cause }),
  });
}
