import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";
import { PipeloraError } from "../../common/errors.ts";
import { shown } from "../../common/shown.ts";
import { isRecord } from "../../data/readers/checks.ts";
import { parseMessages } from "../../data/readers/messages.ts";
import type { Language } from "./sample.ts";

export interface PromptRow {
  /** Counted from 0, empty lines left out. */
  readonly index: number;
  /** As the file has it. */
  readonly row: Readonly<Record<string, unknown>>;
  readonly ids: readonly number[];
}

/** Names of rows' prompts; one a row. */
const KINDS = ["prompt", "messages", "prompt_ids"] as const;

export interface PromptFile {
  readonly path: string;
  /** Whether lines are prompts as they stand, not JSON. */
  readonly plain: boolean;
}

/**
 * Prompts of a file, as ids. Errors, naming the line: PL_DATASET_INVALID, PL_TEMPLATE_INVALID, PL_TOKENIZER_INVALID for text where there
 * is no tokenizer.
 */
export async function* promptRows({ path, plain }: PromptFile, language: Language): AsyncGenerator<PromptRow> {
  const lines = createInterface({ input: createReadStream(path, "utf8"), crlfDelay: Number.POSITIVE_INFINITY });
  let number = 0;
  let index = 0;
  try {
    for await (const line of lines) {
      const text = number++ === 0 ? line.replace(/^\ufeff/, "") : line;
      if (text.trim() === "") continue;
      const where = `${path}, line ${number}`;
      const row = plain ? { prompt: text } : parsed(where, text);
      yield { index: index++, row, ids: encoded(where, row, language) };
    }
  } catch (error) {
    if (error instanceof PipeloraError) throw error;
    throw new PipeloraError("PL_DATASET_INVALID", `${path} can't be read: ${(error as Error).message}`, {
      cause: error,
    });
  }
  if (index === 0) throw invalid(`${path} holds no prompt`, "Write one a line.");
}

function parsed(where: string, line: string): Record<string, unknown> {
  let row: unknown;
  try {
    row = JSON.parse(line);
  } catch (cause) {
    throw invalid(
      `${where} is no JSON: ${(cause as Error).message}`,
      'Write each prompt as {"prompt": "…"} on a line.',
      cause,
    );
  }
  const kinds = isRecord(row) ? KINDS.filter((kind) => row[kind] != null) : [];
  if (kinds.length !== 1) {
    throw invalid(`${where} must have one of ${KINDS.join(", ")}, got ${shown(row)}`, 'Write it as {"prompt": "…"}.');
  }
  return row as Record<string, unknown>;
}

function encoded(where: string, row: Readonly<Record<string, unknown>>, { tokenizer, template }: Language): number[] {
  const { prompt, messages, prompt_ids: ids } = row;
  if (ids != null) {
    if (Array.isArray(ids) && ids.length > 0 && ids.every((id) => Number.isInteger(id) && id >= 0)) return ids;
    throw invalid(`${where}: "prompt_ids" must be a list of ids, got ${shown(ids)}`, "Write at least one id.");
  }
  if (tokenizer === null) {
    throw new PipeloraError("PL_TOKENIZER_INVALID", `${where} holds text, and the model has no tokenizer`, {
      hint: 'Give {"prompt_ids"}, or a model folder with its tokenizer.',
    });
  }
  if (messages != null) {
    if (template === null)
      throw invalid(`${where}: "messages" need the template, which --raw leaves out`, "Leave --raw out.");
    const tools = Array.isArray(row["tools"]) ? row["tools"] : null;
    return template.encodePrompt(parseMessages(where, "messages", messages), { tools });
  }
  if (typeof prompt !== "string")
    throw invalid(`${where}: "prompt" must be text, got ${shown(prompt)}`, "Write a string.");
  const made =
    template === null
      ? tokenizer.encode(prompt, { addSpecials: true })
      : template.encodePrompt([{ role: "user", content: prompt }]);
  if (made.length === 0) throw invalid(`${where}: the prompt has no token`, "Write some text.");
  return made;
}

function invalid(message: string, hint: string, cause?: unknown): PipeloraError {
  return new PipeloraError("PL_DATASET_INVALID", message, { hint, ...(cause === undefined ? {} : { cause }) });
}
