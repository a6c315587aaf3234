import { PipeloraError } from "../common/errors.ts";
import type { EncodedChat } from "./chat-template.ts";
import { datasetError } from "./readers/checks.ts";
import type { Row } from "./readers/rows.ts";
import { IGNORED, type NewRow } from "./row-store.ts";
import type { RowTemplate } from "./templates.ts";

export interface EncodeOptions {
  /** Rows are cut to this many tokens. */
  readonly maxLength: number;
  /** ModelShape.vocab: ids must lie below it. */
  readonly vocabSize: number;
}

/** An encoded row, and what is counted of it. */
export interface KeptRow extends NewRow {
  readonly truncated: boolean;
  readonly textLost: boolean;
}

/**
 * Encodes one row of a file, `number` from 1. `template` is not needed for ready ids. Errors, each with file and row: PL_DATASET_INVALID,
 * PL_TEMPLATE_INVALID, PL_TOKENIZER_INVALID.
 */
export function encodeRow(
  row: Row,
  template: RowTemplate | null,
  { path, number }: { readonly path: string; readonly number: number },
  { maxLength, vocabSize }: EncodeOptions,
): KeptRow {
  const encoded = encoding(row, template, path, number);
  checkIds(encoded, row, vocabSize, path, number);
  const truncated = encoded.tokens.length > maxLength;
  const { tokens, labels, weights = null, textLost = false } = encoded;
  if (!truncated) return { tokens, labels, weights, truncated, textLost };
  const cut = (values: readonly number[]) => values.slice(0, maxLength);
  return { tokens: cut(tokens), labels: cut(labels), weights: weights && cut(weights), truncated, textLost };
}

function encoding(row: Row, template: RowTemplate | null, path: string, number: number): EncodedChat {
  if (row.kind === "ids") return { tokens: row.inputIds, labels: row.labels ?? row.inputIds, weights: row.weights };
  try {
    if (row.kind === "text") return template!.encodeText(row.text);
    if (row.kind === "segments") return template!.encodeSegments(row.segments);
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

function checkIds({ tokens, labels }: EncodedChat, row: Row, vocabSize: number, path: string, number: number): void {
  const outside = (id: number) => !(id >= 0 && id < vocabSize);
  const bad = tokens.find(outside) ?? labels.find((label) => label !== IGNORED && outside(label));
  if (bad === undefined) return;
  const message = `${path}: row ${number} has token id ${bad}, the model knows 0 … ${vocabSize - 1}.`;
  if (row.kind === "ids") throw datasetError(message, "The ids were made with another model's tokenizer.");
  throw new PipeloraError("PL_TOKENIZER_INVALID", message, { hint: "Use the tokenizer that came with this model." });
}
