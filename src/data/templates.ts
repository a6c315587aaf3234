import { PipeloraError } from "../common/errors.ts";
import type { Tokenizer } from "../formats/tokenizer/tokenizer.ts";
import { CHATML, ChatTemplate, type EncodedChat } from "./chat-template.ts";
import { IGNORED } from "./dataset.ts";
import type { ChatMessage, Row } from "./readers/rows.ts";

export type TemplateName = "auto" | "tutorial" | "chat";

/** How rows of text become tokens and labels, and prompts become tokens. */
export interface RowTemplate {
  readonly name: "tutorial" | "chat";
  encodeInstruction(row: Extract<Row, { kind: "instruction" }>): EncodedChat;
  encodeMessages(messages: readonly ChatMessage[]): EncodedChat;
  /** A prompt that the model is to answer, as the training rows begin. */
  encodePrompt(messages: readonly ChatMessage[]): number[];
  /** Ids that end an answer besides the model's own end tokens. */
  readonly stopIds: readonly number[];
}

/** The role-play line of Qwen's LoRA tutorial. */
const TUTORIAL_SYSTEM = "现在你要扮演皇帝身边的女人--甄嬛.";

/**
 * auto: the tokenizer's own chat template where it has one, else ChatML as the Qwen tutorial writes it. `system`: the
 * system line; null: the tutorial's own, or none in chat. Error: PL_TEMPLATE_INVALID where the tokenizer lacks what the
 * template needs.
 */
export function rowTemplate(tokenizer: Tokenizer, name: TemplateName, system: string | null): RowTemplate {
  const chosen = name === "auto" ? (tokenizer.chatTemplate === null ? "tutorial" : "chat") : name;
  return chosen === "tutorial" ? tutorialTemplate(tokenizer, system) : chatTemplate(tokenizer, system);
}

const withSystem = (messages: readonly ChatMessage[], system: string | null): readonly ChatMessage[] =>
  system === null || messages[0]?.role === "system" ? messages : [{ role: "system", content: system }, ...messages];

/**
 * Row by row what the tutorial's process_func does: prompt and answer encoded apart, the answer's turn labelled from its
 * first token on, the end token behind it. Chat messages are plain ChatML.
 */
function tutorialTemplate(tokenizer: Tokenizer, system: string | null): RowTemplate {
  const end = tokenizer.padId ?? tokenizer.eosId;
  const imEnd = tokenizer.tokenId("<|im_end|>");
  if (end === null || imEnd === null || tokenizer.tokenId("<|im_start|>") === null) {
    throw new PipeloraError(
      "PL_TEMPLATE_INVALID",
      "This tokenizer has no chat template, nor ChatML's special tokens.",
      {
        hint: "Give a dataset of ready input_ids, or put a chat_template into tokenizer_config.json.",
      },
    );
  }
  const chatml = new ChatTemplate(tokenizer, CHATML);
  const systemLine = system ?? TUTORIAL_SYSTEM;
  const promptText = (systemText: string, user: string) =>
    `<|im_start|>system\n${systemText}<|im_end|>\n<|im_start|>user\n${user}<|im_end|>`;
  return {
    name: "tutorial",
    stopIds: [imEnd],
    encodeInstruction({ instruction, input, output }) {
      const prompt = tokenizer.encode(promptText(systemLine, instruction + input));
      const answer = [...tokenizer.encode(`<|im_start|>assistant\n${output}<|im_end|>\n`), end];
      return { tokens: [...prompt, ...answer], labels: [...prompt.map(() => IGNORED), ...answer] };
    },
    encodeMessages: (messages) => chatml.encode(withSystem(messages, system)),
    encodePrompt(messages) {
      const [first, second] = withSystem(messages, systemLine);
      if (messages.length > 2 || first?.role !== "system" || second?.role !== "user") {
        return chatml.encodePrompt(withSystem(messages, systemLine));
      }
      const prompt = tokenizer.encode(promptText(first.content, second.content));
      return [...prompt, ...tokenizer.encode("<|im_start|>assistant\n")];
    },
  };
}

function chatTemplate(tokenizer: Tokenizer, system: string | null): RowTemplate {
  const chat = new ChatTemplate(tokenizer, tokenizer.chatTemplate ?? CHATML);
  const usesChatml = tokenizer.chatTemplate === null;
  if (usesChatml && tokenizer.tokenId("<|im_start|>") === null) {
    throw new PipeloraError(
      "PL_TEMPLATE_INVALID",
      "This tokenizer has no chat template, nor ChatML's special tokens.",
      {
        hint: "Give a dataset of ready input_ids, or put a chat_template into tokenizer_config.json.",
      },
    );
  }
  return {
    name: "chat",
    stopIds: [tokenizer.eosId, usesChatml ? tokenizer.tokenId("<|im_end|>") : null].filter((id) => id !== null),
    encodeInstruction({ instruction, input, output }) {
      const user = [instruction, input].filter((part) => part !== "").join("\n");
      const messages: ChatMessage[] = [
        { role: "user", content: user },
        { role: "assistant", content: output },
      ];
      return chat.encode(withSystem(messages, system));
    },
    encodeMessages: (messages) => chat.encode(withSystem(messages, system)),
    encodePrompt: (messages) => chat.encodePrompt(withSystem(messages, system)),
  };
}
