/** Row keys that a column of another name may stand for. */
export const COLUMN_KEYS = [
  "instruction",
  "input",
  "output",
  "system",
  "history",
  "messages",
  "tools",
  "text",
  "prompt",
  "completion",
  "query",
  "response",
  "input_ids",
  "labels",
  "loss_weights",
] as const;
/** Row keys by the column of the file that holds them. */
export type Columns = Readonly<Partial<Record<(typeof COLUMN_KEYS)[number], string>>>;
