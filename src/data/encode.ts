import { PipeloraError } from "../common/errors.ts";
import type { Columns } from "../config/column-keys.ts";
import type { EncodedChat } from "./chat-template.ts";
import { type Dataset, DatasetBuilder, IGNORED } from "./dataset.ts";
import { datasetError } from "./readers/checks.ts";
import { readRows } from "./readers/read.ts";
import type { Row } from "./readers/rows.ts";
import type { RowTemplate } from "./templates.ts";

export interface EncodeOptions {
  /** Rows are cut to this many tokens. */
  readonly maxLength: number;
  /** ModelShape.vocab: ids must lie below it. */
  readonly vocabSize: number;
  /** Row keys by the file's columns; none: as the file names them. */
  readonly columns?: Columns;
}

/**
 * Reads a file and encodes its rows. `template` is asked for only when a row of text comes, so that ready ids need no
 * tokenizer. Errors: PL_DATASET_INVALID (also where every label of the set is masked), PL_TEMPLATE_INVALID,
 * PL_TOKENIZER_INVALID.
 */
export async function encodeDataset(
  path: string,
  template: () => RowTemplate | Promise<RowTemplate>,
  options: EncodeOptions,
): Promise<Dataset> {
  const builder = new DatasetBuilder();
  let encoder: RowTemplate | null = null;
  let number = 0;
  for await (const row of readRows(path, options.columns)) {
    number += 1;
    if (row.kind !== "ids") encoder ??= await template();
    const { tokens, labels, textLost = false } = encodeRow(row, encoder, path, number);
    checkIds(tokens, labels, row, options.vocabSize, path, number);
    const cut = tokens.length > options.maxLength;
    builder.add(
      cut
        ? { tokens: tokens.slice(0, options.maxLength), labels: labels.slice(0, options.maxLength) }
        : { tokens, labels },
      cut,
      textLost,
    );
  }
  const dataset = builder.build();
  if (dataset.statistics.unlabelled === dataset.size) {
    throw datasetError(
      `${path}: no token of any of the ${dataset.size} rows is trained on: all labels are masked${dataset.statistics.truncated > 0 ? `, ${dataset.statistics.truncated} rows were cut at ${options.maxLength} tokens` : ""}.`,
      "Check the labels, or raise --max-length so that answers are not cut off.",
    );
  }
  return dataset;
}

function encodeRow(row: Row, template: RowTemplate | null, path: string, number: number): Readonly<EncodedChat> {
  if (row.kind === "ids") return { tokens: [...row.inputIds], labels: [...(row.labels ?? row.inputIds)] };
  try {
    if (row.kind === "text") return template!.encodeText(row.text);
    if (row.kind === "instruction") return template!.encodeInstruction(row);
    return template!.encodeMessages(row.messages, row.tools);
  } catch (error) {
    if (!(error instanceof PipeloraError)) throw error;
    throw new PipeloraError(error.code, `${path}: row ${number}: ${error.message}`, {
      ...(error.hint === undefined ? {} : { hint: error.hint }),
      cause: error,
    });
  }
}

function checkIds(
  tokens: readonly number[],
  labels: readonly number[],
  row: Row,
  vocabSize: number,
  path: string,
  number: number,
): void {
  const outside = (id: number) => !(id >= 0 && id < vocabSize);
  const bad = tokens.find(outside) ?? labels.find((label) => label !== IGNORED && outside(label));
  if (bad === undefined) return;
  const message = `${path}: row ${number} has token id ${bad}, the model knows 0 … ${vocabSize - 1}.`;
  if (row.kind === "ids") throw datasetError(message, "The ids were made with another model's tokenizer.");
  throw new PipeloraError("PL_TOKENIZER_INVALID", message, { hint: "Use the tokenizer that came with this model." });
}
