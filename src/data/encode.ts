import { stat } from "node:fs/promises";
import { Turns } from "../common/slices.ts";
import type { Columns } from "../config/column-keys.ts";
import { Dataset } from "./dataset.ts";
import { type EncodeOptions, encodeRow } from "./encode-row.ts";
import { EncodeThreads, threadsFor } from "./encode-threads.ts";
import { addBatch, type EncodedBatch, type RowBatch, type TemplateRecipe } from "./encoded-batch.ts";
import { datasetError } from "./readers/checks.ts";
import { readRows } from "./readers/read.ts";
import type { Row } from "./readers/rows.ts";
import { RowStore } from "./row-store.ts";
import type { RowTemplate } from "./templates.ts";

/** Rows of one set: one file, or the several files of a split. */
export interface RowSet {
  /** As messages and the log name it. */
  readonly label: string;
  readonly files: readonly string[];
  /** Its share among several sets; null: in proportion to its rows. */
  readonly weight: number | null;
  /** Only so many of its first rows; null: all. */
  readonly limit: number | null;
  /** Row keys by the files' columns; empty: as the files name them. */
  readonly columns: Columns;
  /** Called when the first row of text comes, so that ready ids need no tokenizer. */
  readonly template: () => RowTemplate | Promise<RowTemplate>;
  /** What threads need to make the same template; null: rows are encoded on this thread. */
  readonly recipe: TemplateRecipe | null;
  /** Called for each warning about the template; may be called again with the same text. */
  readonly say: (remark: string) => void;
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
export async function encodeSets(
  sets: readonly RowSet[],
  options: EncodeOptions,
  threadsOf: (bytes: number) => number = threadsFor,
): Promise<EncodedSets> {
  const store = new RowStore();
  const sizes: number[] = [];
  for (const set of sets) {
    const before = store.size;
    await encodeSet(store, set, options, threadsOf);
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
      `${label}: no token of any of the ${own.size} rows is trained on: all labels are masked${truncated > 0 ? `, ${truncated} rows were truncated to ${options.maxLength} tokens` : ""}.`,
      "Check the labels, or raise --max-length so that answers are not cut off.",
    );
  }
  return { rows, sizes };
}

/** Rows of a batch: enough that handing it over costs little, few enough that every thread gets one. */
const BATCH_ROWS = 256;

async function encodeSet(
  store: RowStore,
  set: RowSet,
  options: EncodeOptions,
  threadsOf: (bytes: number) => number,
): Promise<void> {
  const { recipe } = set;
  const threads = recipe === null ? 0 : threadsOf(await bytesOf(set.files));
  if (threads === 0) return encodeHere(store, set, options);
  const pool = new EncodeThreads(threads, { recipe: recipe!, options });
  try {
    await encodeThere(store, set, pool);
  } finally {
    await pool.close();
  }
}

async function encodeHere(store: RowStore, set: RowSet, options: EncodeOptions): Promise<void> {
  let template: RowTemplate | null = null;
  const turns = new Turns();
  for await (const { path, first, rows } of batches(set, 1)) {
    const row = rows[0]!;
    if (row.kind !== "ids" && template === null) {
      template = await set.template();
      if (template.remark !== null) set.say(template.remark);
    }
    const kept = encodeRow(row, template, { path, number: first }, options);
    store.add(kept, kept.truncated, kept.textLost);
    // Yields between rows, so that a signal is heard however slow a template or tokenizer is.
    await turns.take();
  }
}

/** The same by threads. Results come in the order of the rows. */
async function encodeThere(store: RowStore, set: RowSet, pool: EncodeThreads): Promise<void> {
  const ahead: Promise<EncodedBatch>[] = [];
  const take = async () => {
    const batch = await ahead.shift()!;
    if (batch.remark !== null) set.say(batch.remark);
    addBatch(store, batch);
  };
  const unread = batches(set, BATCH_ROWS);
  for (;;) {
    // The error of the earliest row is the one that is thrown.
    const next = await unread.next().catch(async (error: unknown) => {
      while (ahead.length > 0) await take();
      throw error;
    });
    if (next.done) break;
    const encoded = pool.encode(next.value);
    encoded.catch(() => {});
    ahead.push(encoded);
    if (ahead.length >= pool.ahead) await take();
  }
  while (ahead.length > 0) await take();
}

async function* batches(set: RowSet, size: number): AsyncGenerator<RowBatch, void> {
  let left = set.limit ?? Number.POSITIVE_INFINITY;
  for (const path of set.files) {
    let rows: Row[] = [];
    let first = 1;
    try {
      for await (const row of readRows(path, set.columns)) {
        rows.push(row);
        left -= 1;
        if (rows.length < size && left > 0) continue;
        yield { path, first, rows };
        first += rows.length;
        rows = [];
        if (left === 0) return;
      }
    } catch (error) {
      // The rows before the bad one may be worse.
      if (rows.length > 0) yield { path, first, rows };
      throw error;
    }
    if (rows.length > 0) yield { path, first, rows };
  }
}

/** About how many bytes of text the files hold. A compressed file holds a few times its size. */
async function bytesOf(files: readonly string[]): Promise<number> {
  const sizes = await Promise.all(
    files.map(async (path) => {
      const size = (await stat(path).catch(() => null))?.size ?? 0;
      return /\.(gz|zst|parquet)$/i.test(path) ? 4 * size : size;
    }),
  );
  return sizes.reduce((sum, size) => sum + size, 0);
}
