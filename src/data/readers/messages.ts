import { shown } from "../../common/shown.ts";
import { datasetError, isEmpty, isRecord, lossWeight } from "./checks.ts";

/** One message, with all keys that its template may use. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
  /** The weight of its labels in the loss; 0: it is not trained on; absent: 1. */
  readonly lossWeight?: number;
  readonly [key: string]: unknown;
}

const ROLES: readonly string[] = ["system", "user", "assistant", "tool"];
/** Roles as ShareGPT and its kin name them. */
const ROLE_NAMES: Readonly<Record<string, string>> = {
  human: "user",
  gpt: "assistant",
  bot: "assistant",
  model: "assistant",
  chatgpt: "assistant",
  observation: "tool",
  function: "tool",
  tool_response: "tool",
};
/** Roles of messages whose content is a tool call, or a list of calls, as JSON. */
const CALLS = ["function_call", "tool_call"];
/** The other trainers' keys that say whether a message is trained on. */
const SWITCHES = ["loss", "train", "train_on_turn", "training"];
const WEIGHTS = ["loss_weight", "weight"];
const NOT_HONOURED = [
  "images",
  "image",
  "audios",
  "audio",
  "videos",
  "video",
  "function_call",
  "rejected",
  "train_detail",
];
/** Keys that are handed to the template as they are. */
const HANDED_ON = ["reasoning_content", "tool_calls", "tool_call_id", "name", "thinking"];

/** Checks a list of messages in any form that public sets use. Error: PL_DATASET_INVALID with row and message. */
export function parseMessages(where: string, key: string, value: unknown): ChatMessage[] {
  const list = typeof value === "string" ? fromText(where, key, value) : value;
  if (!Array.isArray(list) || list.length === 0) {
    throw datasetError(
      `${where}: "${key}" must be a list of {role, content}.`,
      "Write at least one user and one assistant message.",
    );
  }
  return joinedCalls(list.flatMap((message, index) => parseMessage(`${where}, message ${index + 1}`, message)));
}

/** Consecutive calls belong to one turn. */
function joinedCalls(messages: readonly ChatMessage[]): ChatMessage[] {
  const joined: ChatMessage[] = [];
  for (const message of messages) {
    const last = joined.at(-1);
    if (isCallAlone(last) && isCallAlone(message) && last!.lossWeight === message.lossWeight) {
      joined[joined.length - 1] = { ...last!, tool_calls: [...callsOf(last!), ...callsOf(message)] };
    } else joined.push(message);
  }
  return joined;
}

const callsOf = (message: ChatMessage) => message["tool_calls"] as readonly unknown[];
const isCallAlone = (message: ChatMessage | undefined) =>
  message?.role === "assistant" && message.content === "" && Array.isArray(message["tool_calls"]);

function fromText(where: string, key: string, text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw datasetError(`${where}: "${key}" is text that is no JSON.`, "Write a list of {role, content}.", error);
  }
}

function parseMessage(at: string, message: unknown): ChatMessage[] {
  if (!isRecord(message)) throw datasetError(`${at} is not an object.`, 'Write it as {"role": …, "content": …}.');
  const foreign = NOT_HONOURED.find((key) => !isEmpty(message[key]));
  if (foreign !== undefined)
    throw datasetError(`${at} has "${foreign}", which can't be honoured.`, "Take the key out.");
  // Firefly's pairs: one entry holds both turns.
  if (typeof message["human"] === "string" && typeof message["assistant"] === "string") {
    return [
      { role: "user", content: message["human"] },
      { role: "assistant", content: message["assistant"] },
    ];
  }
  const named = message["role"] ?? message["from"];
  const written = message["content"] ?? message["value"];
  const weight = weightOf(at, message);
  const weighted = weight === 1 ? {} : { lossWeight: weight };
  if (typeof named === "string" && CALLS.includes(named)) {
    return [{ role: "assistant", content: "", tool_calls: calls(at, written), ...weighted }];
  }
  const role = typeof named === "string" && Object.hasOwn(ROLE_NAMES, named) ? ROLE_NAMES[named] : named;
  if (typeof role !== "string" || !ROLES.includes(role)) {
    throw datasetError(
      `${at}: role must be ${ROLES.join(", ")}, got ${shown(named)}.`,
      "Rename the role, or leave the row out.",
    );
  }
  const handedOn = Object.fromEntries(
    HANDED_ON.filter((key) => !isEmpty(message[key])).map((key) => [key, message[key]]),
  );
  const { content, ...parts } = contentOf(at, written, !isEmpty(message["tool_calls"]));
  return [{ role, content, ...parts, ...handedOn, ...weighted }];
}

interface Content {
  readonly content: string;
  readonly reasoning_content?: string;
  readonly tool_calls?: readonly unknown[];
}

/** Text, or a list of parts: text, LLaMA-Factory v1's reasoning and calls (each under `value`). */
function contentOf(at: string, content: unknown, mayLack: boolean): Content {
  if (typeof content === "string") return { content };
  if (isEmpty(content) && mayLack) return { content: "" };
  if (!Array.isArray(content)) throw datasetError(`${at}: "content" must be text.`, "Write it as a string.");
  const texts: string[] = [];
  const reasoning: string[] = [];
  const called: unknown[] = [];
  for (const part of content as unknown[]) {
    const text = isRecord(part) ? (part["text"] ?? part["value"]) : part;
    const type = isRecord(part) ? (part["type"] ?? "text") : "text";
    if (type === "tool_call" || type === "tool_calls") called.push(...calls(at, text));
    else if (typeof text === "string" && type === "text") texts.push(text);
    else if (typeof text === "string" && type === "reasoning") reasoning.push(text);
    else throw datasetError(`${at}: "content" has a part that is no text.`, "Only text can be trained on.");
  }
  return {
    content: texts.join(""),
    ...(reasoning.length === 0 ? {} : { reasoning_content: reasoning.join("") }),
    ...(called.length === 0 ? {} : { tool_calls: called }),
  };
}

/** Calls as templates take them: [{type, function: {name, arguments}}]. */
function calls(at: string, written: unknown): unknown[] {
  let value = written;
  try {
    if (typeof value === "string") value = JSON.parse(value) as unknown;
  } catch {}
  return (Array.isArray(value) ? value : [value]).map((call: unknown) => {
    const inner = isRecord(call) && isRecord(call["function"]) ? call["function"] : call;
    if (!isRecord(inner) || typeof inner["name"] !== "string") {
      throw datasetError(
        `${at}: a call must be {"name", "arguments"} as JSON, got ${shown(written)}.`,
        "Name the function.",
      );
    }
    return { type: "function", function: { name: inner["name"], arguments: inner["arguments"] ?? {} } };
  });
}

/** LLaMA-Factory v1's loss_weight (OpenAI: weight) is a number; the others' keys are booleans. */
function weightOf(at: string, message: Record<string, unknown>): number {
  let trained = 1;
  for (const key of SWITCHES) {
    const value = message[key];
    if (value === undefined || value === null || value === true || value === 1) continue;
    if (value !== false && value !== 0) {
      throw datasetError(`${at}: "${key}" must be true or false, got ${shown(value)}.`, "Write true or false.");
    }
    trained = 0;
  }
  const [weight = 1, ...others] = WEIGHTS.filter((key) => !isEmpty(message[key])).map((key) =>
    lossWeight(`${at}: "${key}"`, message[key]),
  );
  if (others.some((other) => other !== weight)) {
    throw datasetError(`${at}: ${WEIGHTS.map((key) => `"${key}"`).join(" and ")} differ.`, "Leave one of them out.");
  }
  const scale = message["loss_scale"];
  if (scale === 0) return 0;
  if (isEmpty(scale) || scale === 1) return trained * weight;
  throw datasetError(
    `${at}: "loss_scale" ${shown(scale)} can't be honoured: ms-swift divides by the number of labels, here weights are divided by their sum.`,
    'Write "loss_weight" if that is what you want.',
  );
}
