import { PipeloraError } from "../common/errors.ts";
import type { Tokenizer } from "../formats/tokenizer/tokenizer.ts";
import { CHATML, type ChatExtras, ChatTemplate, type EncodedChat, type TrainOn } from "./chat-template.ts";
import type { ChatMessage } from "./readers/messages.ts";
import type { Row, Segment } from "./readers/rows.ts";
import { IGNORED } from "./row-store.ts";

export type TemplateName = "auto" | "tutorial" | "chat";

/** How rows of text become tokens and labels, and prompts become tokens. */
export interface RowTemplate {
  readonly name: "tutorial" | "chat";
  /** A warning about the choice; null: none. */
  readonly remark: string | null;
  encodeInstruction(row: Extract<Row, { kind: "instruction" }>): EncodedChat;
  encodeMessages(messages: readonly ChatMessage[], tools?: readonly unknown[] | null): EncodedChat;
  /** Texts encoded one by one, with nothing added, and laid end to end, as Axolotl's input_output. */
  encodeSegments(segments: readonly Segment[]): EncodedChat;
  /** Plain text for language modelling: every token is a label, and the end token follows. */
  encodeText(text: string): EncodedChat;
  /** Throws PL_TEMPLATE_INVALID where turns can't be rendered, so that prompts and rows of instructions or messages fail. */
  requireChat(): void;
  /** A prompt for the model to answer, in the form in which training rows begin. */
  encodePrompt(messages: readonly ChatMessage[], extras?: ChatExtras): number[];
  /** Jinja source that turns are written with; null where they can't be. */
  readonly source: string | null;
  /** Ids that end an answer besides the model's own end tokens. */
  readonly stopIds: readonly number[];
}

/** The role-play line of Qwen's LoRA tutorial. */
const TUTORIAL_SYSTEM = "现在你要扮演皇帝身边的女人--甄嬛.";

export interface TemplateSettings {
  readonly name: TemplateName;
  /** The system line; null: the tutorial's own, or none in chat. */
  readonly system: string | null;
  readonly trainOn?: TrainOn;
  /** The date that templates may write; none: today. */
  readonly now?: Date;
}

/**
 * auto: the tutorial's ChatML for Qwen (v1), whose tokenizer is a tiktoken file; for others their own chat template, or plain
 * ChatML where they have none but know its tokens. Error: PL_TEMPLATE_INVALID where the tokenizer lacks what the template
 * needs; for a chat only once turns are to be written.
 */
export function rowTemplate(tokenizer: Tokenizer, settings: TemplateSettings): RowTemplate {
  const { name } = settings;
  const chosen = name === "auto" ? (tokenizer.isQwen1 && tokenizer.chatTemplate === null ? "tutorial" : "chat") : name;
  return chosen === "tutorial" ? tutorialTemplate(tokenizer, settings) : chatTemplate(tokenizer, settings);
}

function textEncoder(tokenizer: Tokenizer): RowTemplate["encodeText"] {
  return (text) => {
    const tokens = tokenizer.encode(text, { addSpecials: true });
    if (tokenizer.eosId !== null && tokens.at(-1) !== tokenizer.eosId) tokens.push(tokenizer.eosId);
    return { tokens, labels: [...tokens] };
  };
}

function segmentsEncoder(tokenizer: Tokenizer): RowTemplate["encodeSegments"] {
  return (segments) => {
    const parts = segments.map(({ text, label }) => ({ ids: tokenizer.encode(text), label }));
    return {
      tokens: parts.flatMap(({ ids }) => ids),
      labels: parts.flatMap(({ ids, label }) => (label ? ids : ids.map(() => IGNORED))),
    };
  };
}

const withSystem = (messages: readonly ChatMessage[], system: string | null): readonly ChatMessage[] =>
  system === null || messages[0]?.role === "system" ? messages : [{ role: "system", content: system }, ...messages];

/**
 * Row by row what the tutorial's process_func does: prompt and answer encoded apart, the answer's turn labelled from its
 * first token on, the end token behind it. Chat messages are plain ChatML.
 */
function tutorialTemplate(
  tokenizer: Tokenizer,
  { system, trainOn = "all", now = new Date() }: TemplateSettings,
): RowTemplate {
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
  const chatml = new ChatTemplate(tokenizer, CHATML, now);
  const systemLine = system ?? TUTORIAL_SYSTEM;
  const promptText = (systemText: string, user: string) =>
    `<|im_start|>system\n${systemText}<|im_end|>\n<|im_start|>user\n${user}<|im_end|>`;
  return {
    name: "tutorial",
    remark: null,
    stopIds: [imEnd],
    encodeInstruction({ instruction, input, output }) {
      const prompt = tokenizer.encode(promptText(systemLine, instruction + input));
      const answer = [...tokenizer.encode(`<|im_start|>assistant\n${output}<|im_end|>\n`), end];
      return { tokens: [...prompt, ...answer], labels: [...prompt.map(() => IGNORED), ...answer] };
    },
    encodeMessages: (messages, tools = null) => chatml.encode(withSystem(messages, system), trainOn, { tools }),
    requireChat: () => undefined,
    encodeText: textEncoder(tokenizer),
    encodeSegments: segmentsEncoder(tokenizer),
    source: CHATML,
    encodePrompt(messages, extras) {
      const [first, second] = withSystem(messages, systemLine);
      if (messages.length > 2 || first?.role !== "system" || second?.role !== "user") {
        return chatml.encodePrompt(withSystem(messages, systemLine), extras);
      }
      const prompt = tokenizer.encode(promptText(first.content, second.content));
      return [...prompt, ...tokenizer.encode("<|im_start|>assistant\n")];
    },
  };
}

function chatTemplate(
  tokenizer: Tokenizer,
  { system, trainOn = "all", now = new Date() }: TemplateSettings,
): RowTemplate {
  const usesChatml = tokenizer.chatTemplate === null;
  const writesChatml = tokenizer.tokenId("<|im_start|>") !== null && tokenizer.tokenId("<|im_end|>") !== null;
  const known = usesChatml && !writesChatml ? null : new ChatTemplate(tokenizer, tokenizer.chatTemplate ?? CHATML, now);
  // Plain text and segments need none: a base model is trained on those.
  const chat = () => {
    if (known !== null) return known;
    throw new PipeloraError(
      "PL_TEMPLATE_INVALID",
      "This tokenizer has no chat template, nor ChatML's special tokens.",
      {
        hint: 'Give rows of plain {"text"} or ready input_ids, or put a chat_template into tokenizer_config.json.',
      },
    );
  };
  return {
    name: "chat",
    remark:
      usesChatml && known !== null
        ? "the tokenizer has no chat template, but ChatML's tokens: rows and prompts are written as plain ChatML"
        : (tokenizer.chatTemplateRemark ?? null),
    stopIds: [tokenizer.eosId, usesChatml ? tokenizer.tokenId("<|im_end|>") : null].filter((id) => id !== null),
    encodeInstruction({ instruction, input, output }) {
      const user = [instruction, input].filter((part) => part !== "").join("\n");
      const messages: ChatMessage[] = [
        { role: "user", content: user },
        { role: "assistant", content: output },
      ];
      return chat().encode(withSystem(messages, system), trainOn);
    },
    encodeMessages: (messages, tools = null) => chat().encode(withSystem(messages, system), trainOn, { tools }),
    requireChat: () => void chat(),
    encodeText: textEncoder(tokenizer),
    encodeSegments: segmentsEncoder(tokenizer),
    source: known === null ? null : (tokenizer.chatTemplate ?? CHATML),
    encodePrompt: (messages, extras) => chat().encodePrompt(withSystem(messages, system), extras),
  };
}
