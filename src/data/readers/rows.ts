import { nearest } from "../../common/nearest.ts";
import { shown } from "../../common/shown.ts";
import { IGNORED } from "../row-store.ts";
import { datasetError, isEmpty, isRecord, lossWeight } from "./checks.ts";
import { type ChatMessage, parseMessages } from "./messages.ts";

/** One row of a dataset, checked. */
export type Row =
  | { readonly kind: "instruction"; readonly instruction: string; readonly input: string; readonly output: string }
  | { readonly kind: "messages"; readonly messages: readonly ChatMessage[]; readonly tools: readonly unknown[] | null }
  | { readonly kind: "text"; readonly text: string }
  /** Axolotl's template-free rows: texts that are used unchanged, each trained on or not. */
  | { readonly kind: "segments"; readonly segments: readonly Segment[] }
  | {
      readonly kind: "ids";
      readonly inputIds: readonly number[];
      readonly labels: readonly number[] | null;
      /** Of each label; null: 1 everywhere. */
      readonly weights: readonly number[] | null;
    };

export interface Segment {
  readonly text: string;
  readonly label: boolean;
}

/** Keys that would change what is trained on and are not supported. Empty values are accepted. */
const NOT_HONOURED = [
  "functions",
  "documents",
  "images",
  "image",
  "audios",
  "audio",
  "videos",
  "video",
  "rejected",
  "rejected_response",
  "chosen",
  "kto_tag",
  "position_ids",
  "token_type_ids",
];
/** Keys under which sets keep a list of messages. */
const MESSAGE_KEYS = ["messages", "conversations", "conversation"];
/** Pairs of question and answer that mean instruction and output. */
const PAIRS = [
  ["prompt", "completion"],
  ["prompt", "response"],
  ["query", "response"],
  ["question", "answer"],
  ["question", "response"],
  ["prompt", "generation"],
  ["instruction", "response"],
] as const;
/** Keys that a question may refer to: a row with one of these is not a plain pair of question and answer. */
const CONTEXT = [
  "context",
  "contexts",
  "article",
  "passage",
  "choices",
  "options",
  "reflection",
  "critiques",
  "revision",
];

/** Checks one row's keys and types. `number` counts from 1. Error: PL_DATASET_INVALID with row and key. */
export function parseRow(path: string, number: number, value: unknown): Row {
  const where = `${path}: row ${number}`;
  if (!isRecord(value))
    throw datasetError(`${where} is not an object with keys.`, 'Write each row as {"instruction": …, "output": …}.');
  const foreign = NOT_HONOURED.find((key) => !isEmpty(value[key]));
  if (foreign !== undefined) {
    throw datasetError(
      `${where} has "${foreign}", which can't be honoured.`,
      "Take the key out, or write the row as chat messages.",
    );
  }
  if (Array.isArray(value["completions"])) {
    throw datasetError(
      `${where} has "completions": steps with a verdict each, which can't be honoured.`,
      "Supervised fine-tuning takes one completion.",
    );
  }
  if (!isEmpty(value["reflection"]) && !isEmpty(value["corrected"])) {
    throw datasetError(
      `${where} has "reflection" and "corrected" beside its output, which can't be honoured.`,
      "Write the output as it is to be answered, and take the keys out.",
    );
  }
  if (typeof value["label"] === "boolean") {
    throw datasetError(
      `${where} has "label", true or false: a KTO set, which can't be honoured.`,
      'Keep the rows whose "label" is true, without the key.',
    );
  }
  if (Object.hasOwn(value, "input_ids")) return idsRow(where, value);
  const key = MESSAGE_KEYS.find((name) => !isEmpty(value[name]) || (name === "messages" && Object.hasOwn(value, name)));
  if (key !== undefined) return messagesRow(where, value, parseMessages(where, key, value[key]));
  if (Array.isArray(value["segments"])) return { kind: "segments", segments: segmentsOf(where, value["segments"]) };
  const isInstruction = Object.hasOwn(value, "instruction");
  const pair = Object.hasOwn(value, "output")
    ? undefined
    : PAIRS.find(
        ([question, answer]) =>
          (question === "instruction" || !isInstruction) &&
          Object.hasOwn(value, question) &&
          Object.hasOwn(value, answer),
      );
  if (pair !== undefined) return pairRow(where, value, pair);
  if (typeof value["text"] === "string" && !Object.hasOwn(value, "output"))
    return { kind: "text", text: value["text"] };
  return instructionRow(where, value, {
    instruction: textOf(where, value, "instruction"),
    input: isEmpty(value["input"]) ? "" : textOf(where, value, "input"),
    output: textOf(where, value, "output"),
  });
}

function segmentsOf(where: string, list: readonly unknown[]): Segment[] {
  return list.map((segment, index) => {
    if (isRecord(segment) && typeof segment["text"] === "string" && typeof segment["label"] === "boolean") {
      return { text: segment["text"], label: segment["label"] };
    }
    throw datasetError(
      `${where}: "segments" must be a list of {"text", "label"}; entry ${index + 1} is ${shown(segment)}.`,
      "Write label true for what is trained on, false for what is not.",
    );
  });
}

function pairRow(where: string, row: Record<string, unknown>, [question, answer]: readonly [string, string]): Row {
  if (Array.isArray(row[question]) || Array.isArray(row[answer])) {
    const messages = [...parseMessages(where, question, row[question]), ...parseMessages(where, answer, row[answer])];
    return messagesRow(where, row, messages);
  }
  const context = question === "prompt" ? undefined : CONTEXT.find((key) => !isEmpty(row[key]));
  if (context !== undefined) {
    throw datasetError(
      `${where} has "${context}" beside "${question}" and "${answer}": how they make one prompt is not said.`,
      `Say it with --columns, such as '{"instruction": "${question}", "input": "${context}", "output": "${answer}"}'.`,
    );
  }
  const instruction = textOf(where, row, question);
  const input = isEmpty(row["input"]) || question !== "instruction" ? "" : textOf(where, row, "input");
  return instructionRow(where, row, { instruction, input, output: textOf(where, row, answer) });
}

/** alpaca's `system` and `history` make a conversation of the row: the system first, then the turns before. */
function instructionRow(
  where: string,
  row: Record<string, unknown>,
  { instruction, input, output }: { instruction: string; input: string; output: string },
): Row {
  if (isEmpty(row["history"]) && systemOf(where, row) === null)
    return { kind: "instruction", instruction, input, output };
  const history = isEmpty(row["history"]) ? [] : row["history"];
  const isTurns = (turns: unknown): turns is [string, string][] =>
    Array.isArray(turns) &&
    turns.every((turn) => Array.isArray(turn) && turn.length === 2 && turn.every((text) => typeof text === "string"));
  if (!isTurns(history)) {
    throw datasetError(`${where}: "history" must be a list of [question, answer].`, "Write both as text.");
  }
  const messages: ChatMessage[] = history.flatMap(([user, assistant]) => [
    { role: "user", content: user },
    { role: "assistant", content: assistant },
  ]);
  messages.push({ role: "user", content: [instruction, input].filter((part) => part !== "").join("\n") });
  messages.push({ role: "assistant", content: output });
  return messagesRow(where, row, messages);
}

function messagesRow(where: string, row: Record<string, unknown>, messages: readonly ChatMessage[]): Row {
  const system = systemOf(where, row);
  if (system !== null && messages[0]?.role === "system") {
    throw datasetError(`${where} has two system messages.`, 'Take "system" or the first message out.');
  }
  const whole = system === null ? messages : [{ role: "system", content: system }, ...messages];
  if (isEmpty(row["tools"])) return { kind: "messages", messages: whole, tools: null };
  let tools = row["tools"];
  try {
    if (typeof tools === "string") tools = JSON.parse(tools) as unknown;
  } catch {}
  if (!Array.isArray(tools)) throw datasetError(`${where}: "tools" must be a list.`, "Write one JSON schema a tool.");
  return { kind: "messages", messages: whole, tools: tools.map(asTool) };
}

/** A function's schema alone, as ShareGPT's sets have it, is wrapped as templates expect it. */
function asTool(tool: unknown): unknown {
  const bare = isRecord(tool) && typeof tool["name"] === "string" && tool["function"] === undefined;
  return bare ? { type: "function", function: tool } : tool;
}

/** OpenOrca and its kin say system_prompt. */
function systemOf(where: string, row: Record<string, unknown>): string | null {
  const key = ["system", "system_prompt"].find((name) => !isEmpty(row[name]));
  return key === undefined ? null : textOf(where, row, key);
}

function textOf(where: string, row: Record<string, unknown>, key: string): string {
  const value = row[key];
  if (typeof value === "string") return value;
  if (value !== undefined) {
    throw datasetError(`${where}: "${key}" must be text, got ${shown(value)}.`, "Write it as a string.");
  }
  const keys = Object.keys(row);
  const near = nearest(
    key,
    keys.filter((candidate) => !["instruction", "input", "output"].includes(candidate)),
  );
  const found =
    keys.length === 0
      ? "no keys"
      : `the keys ${keys
          .slice(0, 8)
          .map((found) => `"${found}"`)
          .join(", ")}`;
  throw datasetError(
    `${where} lacks "${key}"; it has ${found}.`,
    near.length > 0
      ? `Did you write "${near[0]}" for "${key}"? Rename it.`
      : "Rows need instruction and output (input may be absent), or messages, or input_ids.",
  );
}
function idsRow(where: string, row: Record<string, unknown>): Row {
  const inputIds = integers(where, "input_ids", row["input_ids"]);
  const labels = isEmpty(row["labels"]) ? null : integers(where, "labels", row["labels"]);
  if (inputIds.length === 0) throw datasetError(`${where}: "input_ids" is empty.`, "Leave the row out.");
  if (labels !== null && labels.length !== inputIds.length) {
    throw datasetError(
      `${where}: ${labels.length} labels for ${inputIds.length} input_ids.`,
      "Give one label a token, -100 where none is trained on.",
    );
  }
  const weights = isEmpty(row["loss_weights"]) ? null : weightsOf(where, row["loss_weights"], inputIds.length);
  const mask = row["attention_mask"];
  if (!isEmpty(mask) && integers(where, "attention_mask", mask).some((bit) => bit !== 1)) {
    throw datasetError(
      `${where}: "attention_mask" masks tokens out, which can't be honoured.`,
      "Leave padding out of input_ids.",
    );
  }
  // What weighs nothing is not trained on.
  const given = labels ?? inputIds;
  const trained = weights === null ? labels : given.map((label, t) => (weights[t] === 0 ? IGNORED : label));
  return { kind: "ids", inputIds, labels: trained, weights };
}

function weightsOf(where: string, written: unknown, length: number): number[] {
  const list = listOf(written);
  if (list?.length !== length) {
    throw datasetError(
      `${where}: "loss_weights" must be a list of ${length} numbers, one for each of input_ids.`,
      "Give each token's weight in the loss.",
    );
  }
  return list.map((value, t) =>
    lossWeight(`${where}: "loss_weights" of token ${t + 1}`, typeof value === "bigint" ? Number(value) : value),
  );
}

/** A list as tables hold it too. */
function listOf(written: unknown): unknown[] | null {
  let value = written;
  try {
    if (typeof value === "string") value = JSON.parse(value) as unknown;
  } catch {}
  return Array.isArray(value) || ArrayBuffer.isView(value) ? Array.from(value as ArrayLike<unknown>) : null;
}

/** Parquet gives 64-bit columns as bigints. Number(null) and Number("9") would be numbers too, which a row does not say. */
function wholeNumber(value: unknown): number {
  return typeof value === "number" || typeof value === "bigint" ? Number(value) : Number.NaN;
}

function integers(where: string, key: string, written: unknown): number[] {
  const list = listOf(written)?.map(wholeNumber) ?? null;
  if (list === null || !list.every((id) => Number.isInteger(id) && Math.abs(id) < 2 ** 31)) {
    throw datasetError(`${where}: "${key}" must be a list of token ids.`, "Write whole numbers.");
  }
  return list;
}
