import { z } from "zod";
import { COLUMN_KEYS } from "../column-keys.ts";
import type { Command } from "../option.ts";
import { choice, option, optional, positive, ratio, text } from "./vocabulary.ts";

const TEMPLATES = ["auto", "tutorial", "chat"] as const;
const columns = z.partialRecord(z.enum(COLUMN_KEYS), text);
/** One of several sets. */
const rowSet = z.strictObject({
  path: text,
  weight: z.number().positive().optional(),
  rows: positive.optional(),
  columns: columns.optional(),
  template: z.enum(TEMPLATES).optional(),
});
const rowSets = z.union([text, z.array(z.union([text, rowSet])).min(1)], {
  error: "expected a path, or a list of paths and of {path, weight, rows, columns, template}, weight and rows above 0",
});
/** Data sets as the configuration gives them: a path or a name, alone or with settings for that set. */
export type RowSets = z.infer<typeof rowSets>;

/** Commands that turn messages or rows into text. */
const TEMPLATES_USED: readonly Command[] = ["train", "plan", "tokenize", "generate", "chat", "serve"];

export const dataOptions = {
  dataset: option(
    "string",
    "Data",
    ["train", "plan"],
    optional(rowSets),
    "Training rows: JSON, JSONL, CSV, TSV (each also as .gz or .zst) or Parquet, or owner/name[:split][@revision] of a hub; several with commas between, or in YAML a list of path, weight, rows, columns, template.",
    "FILE,…",
  ),
  eval_dataset: option(
    "string",
    "Data",
    ["train"],
    optional(rowSets),
    "Rows to evaluate on, named as those of --dataset.",
    "FILE,…",
  ),
  columns: option(
    "json",
    "Data",
    ["train", "plan", "tokenize"],
    columns.default({}),
    'Columns of the file by what they hold, such as {"instruction": "q", "output": "a"}; none: the file\'s own names.',
  ),
  validation_split: option(
    "number",
    "Data",
    ["train"],
    ratio.default(0),
    "Share of the training rows held out for evaluation when no --eval-dataset is given.",
    "SHARE",
  ),
  max_length: option(
    "integer",
    "Data",
    ["train", "plan", "tokenize"],
    positive.default(384),
    "Rows are truncated to this many tokens.",
  ),
  system: option("string", "Data", TEMPLATES_USED, optional(z.string()), "System line; none: the template's own."),
  template: option(
    "string",
    "Data",
    TEMPLATES_USED,
    choice(TEMPLATES).default("auto"),
    "How rows become text: tutorial (ChatML as Qwen's tutorials encode it) or chat (the tokenizer's chat_template); auto: tutorial for Qwen (v1), else chat, which is plain ChatML where the tokenizer has no template but its tokens.",
    "NAME",
  ),
  train_on: option(
    "string",
    "Data",
    ["train", "plan", "tokenize"],
    choice(["all", "last"]).default("all"),
    "Which of the assistant's turns in a conversation are trained on.",
    "WHICH",
  ),
  template_date: option(
    "string",
    "Data",
    TEMPLATES_USED,
    optional(z.string().refine((date) => !Number.isNaN(Date.parse(date)), "expected a date such as 2026-11-29")),
    "Date that a template writes where it writes today's; none: that of the run's first start, which checkpoints keep.",
    "DATE",
  ),
};
