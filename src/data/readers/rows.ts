import { PipeloraError } from "../../common/errors.ts";
import { nearest } from "../../common/nearest.ts";

export interface ChatMessage {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

/** One row of a dataset, checked. */
export type Row =
  | { readonly kind: "instruction"; readonly instruction: string; readonly input: string; readonly output: string }
  | { readonly kind: "messages"; readonly messages: readonly ChatMessage[] }
  | { readonly kind: "ids"; readonly inputIds: readonly number[]; readonly labels: readonly number[] | null };

/** Keys that would change what is trained on and can't be honoured; empty values are let through. */
const NOT_HONOURED = [
  "tools",
  "functions",
  "documents",
  "history",
  "images",
  "system",
  "position_ids",
  "token_type_ids",
];
const MESSAGE_NOT_HONOURED = ["tool_calls", "function_call", "tool_call_id", "reasoning_content", "images", "weight"];
const ROLES: readonly string[] = ["system", "user", "assistant"];

export function datasetError(message: string, hint: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_DATASET_INVALID", message, { hint, ...(cause === undefined ? {} : { cause }) });
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const isEmpty = (value: unknown) =>
  value === undefined || value === null || value === "" || (Array.isArray(value) && value.length === 0);

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
  if (Object.hasOwn(value, "input_ids")) return idsRow(where, value);
  if (Object.hasOwn(value, "messages")) return messagesRow(where, value["messages"]);
  return {
    kind: "instruction",
    instruction: textOf(where, value, "instruction"),
    input: isEmpty(value["input"]) ? "" : textOf(where, value, "input"),
    output: textOf(where, value, "output"),
  };
}

function textOf(where: string, row: Record<string, unknown>, key: string): string {
  const value = row[key];
  if (typeof value === "string") return value;
  if (value !== undefined) {
    throw datasetError(
      `${where}: "${key}" must be text, got ${JSON.stringify(value)?.slice(0, 80)}.`,
      "Write it as a string.",
    );
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

function messagesRow(where: string, value: unknown): Row {
  if (!Array.isArray(value) || value.length === 0) {
    throw datasetError(
      `${where}: "messages" must be a list of {role, content}.`,
      "Write at least one user and one assistant message.",
    );
  }
  const messages = value.map((message, index): ChatMessage => {
    const at = `${where}, message ${index + 1}`;
    if (!isRecord(message)) throw datasetError(`${at} is not an object.`, 'Write it as {"role": …, "content": …}.');
    const foreign = MESSAGE_NOT_HONOURED.find((key) => !isEmpty(message[key]));
    if (foreign !== undefined)
      throw datasetError(`${at} has "${foreign}", which can't be honoured.`, "Take the key out.");
    const { role, content } = message;
    if (typeof role !== "string" || !ROLES.includes(role)) {
      throw datasetError(
        `${at}: role must be ${ROLES.join(", ")}, got ${JSON.stringify(role)}.`,
        "Rename the role, or leave the row out.",
      );
    }
    if (typeof content !== "string") throw datasetError(`${at}: "content" must be text.`, "Write it as a string.");
    return { role: role as ChatMessage["role"], content };
  });
  return { kind: "messages", messages };
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
  const mask = row["attention_mask"];
  if (!isEmpty(mask) && integers(where, "attention_mask", mask).some((bit) => bit !== 1)) {
    throw datasetError(
      `${where}: "attention_mask" masks tokens out, which can't be honoured.`,
      "Leave padding out of input_ids.",
    );
  }
  return { kind: "ids", inputIds, labels };
}

function integers(where: string, key: string, value: unknown): number[] {
  const list =
    Array.isArray(value) || ArrayBuffer.isView(value) ? Array.from(value as ArrayLike<unknown>, Number) : null;
  if (list === null || !list.every((id) => Number.isInteger(id) && Math.abs(id) < 2 ** 31)) {
    throw datasetError(`${where}: "${key}" must be a list of token ids.`, "Write whole numbers.");
  }
  return list;
}
