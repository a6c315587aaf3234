import { PipeloraError } from "../common/errors.ts";
import type { Columns } from "../config/column-keys.ts";
import type { EncodedChat } from "./chat-template.ts";
import { Dataset } from "./dataset.ts";
import { datasetError } from "./readers/checks.ts";
import { readRows } from "./readers/read.ts";
import type { Row } from "./readers/rows.ts";
import { IGNORED, type NewRow, RowStore } from "./row-store.ts";
import type { RowTemplate } from "./templates.ts";

export interface EncodeOptions {
  /** Rows are cut to this many tokens. */
  readonly maxLength: number;
  /** ModelShape.vocab: ids must lie below it. */
  readonly vocabSize: number;
}

/** Rows that belong together: one file, or a split's several. */
export interface RowSet {
  /** As messages and the log name it. */
  readonly label: string;
  readonly files: readonly string[];
  /** Its share among several sets; null: as many as its rows are. */
  readonly weight: number | null;
  /** Only so many of its first rows; null: all. */
  readonly limit: number | null;
  /** Row keys by the files' columns; empty: as the files name them. */
  readonly columns: Columns;
  /** Asked for only when a row of text comes, so that ready ids need no tokenizer. */
  readonly template: () => RowTemplate | Promise<RowTemplate>;
}

/** Sets that lie back to back in one dataset. */
export interface EncodedSets {
  readonly rows: Dataset;
  /** Rows of each set, in the order of the sets. */
  readonly sizes: readonly number[];
}

/**
 * Reads and encodes the rows of sets, one after another. Errors: PL_DATASET_INVALID (also where every label of a set is masked),
 * PL_TEMPLATE_INVALID, PL_TOKENIZER_INVALID.
 */
export async function encodeSets(sets: readonly RowSet[], options: EncodeOptions): Promise<EncodedSets> {
  const store = new RowStore();
  const sizes: number[] = [];
  for (const set of sets) {
    const before = store.size;
    await encodeSet(store, set, options);
    sizes.push(store.size - before);
  }
  const rows = new Dataset(store);
  let begin = 0;
  for (const [index, { label }] of sets.entries()) {
    const first = begin;
    begin += sizes[index]!;
    const own = sets.length === 1 ? rows : rows.select(Array.from({ length: sizes[index]! }, (_, row) => first + row));
    const { truncated, unlabelled } = own.statistics;
    if (unlabelled < own.size) continue;
    throw datasetError(
      `${label}: no token of any of the ${own.size} rows is trained on: all labels are masked${truncated > 0 ? `, ${truncated} rows were cut at ${options.maxLength} tokens` : ""}.`,
      "Check the labels, or raise --max-length so that answers are not cut off.",
    );
  }
  return { rows, sizes };
}

/** One file's rows, as encodeSets encodes them. */
export async function encodeDataset(
  path: string,
  template: RowSet["template"],
  options: EncodeOptions & { readonly columns?: Columns },
): Promise<Dataset> {
  const set: RowSet = {
    label: path,
    files: [path],
    weight: null,
    limit: null,
    columns: options.columns ?? {},
    template,
  };
  return (await encodeSets([set], options)).rows;
}

async function encodeSet(store: RowStore, set: RowSet, options: EncodeOptions): Promise<void> {
  let encoder: RowTemplate | null = null;
  let left = set.limit ?? Number.POSITIVE_INFINITY;
  for (const path of set.files) {
    let number = 0;
    for await (const row of readRows(path, set.columns)) {
      number += 1;
      if (row.kind !== "ids") encoder ??= await set.template();
      const encoded = encodeRow(row, encoder, path, number);
      checkIds(encoded, row, options.vocabSize, path, number);
      const cut = encoded.tokens.length > options.maxLength;
      store.add(cut ? shortened(encoded, options.maxLength) : encoded, cut, encoded.textLost);
      left -= 1;
      if (left === 0) return;
    }
  }
}

function shortened({ tokens, labels, weights }: EncodedChat, length: number): NewRow {
  return {
    tokens: tokens.slice(0, length),
    labels: labels.slice(0, length),
    weights: weights?.slice(0, length) ?? null,
  };
}

function encodeRow(row: Row, template: RowTemplate | null, path: string, number: number): EncodedChat {
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
