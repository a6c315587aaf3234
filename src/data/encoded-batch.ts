import { isErrorCode, PipeloraError } from "../common/errors.ts";
import type { EncodeOptions, KeptRow } from "./encode-row.ts";
import type { Row } from "./readers/rows.ts";
import type { RowStore } from "./row-store.ts";
import type { TemplateSettings } from "./templates.ts";

/** What a thread needs to make the template. */
export interface TemplateRecipe extends Required<Omit<TemplateSettings, "now">> {
  readonly modelDir: string;
  /** The date that templates may write, in milliseconds since 1970. */
  readonly now: number;
}

/** How a thread begins. */
export interface ThreadStart {
  readonly recipe: TemplateRecipe;
  readonly options: EncodeOptions;
}

/** Rows of a file, one after another. */
export interface RowBatch {
  readonly path: string;
  /** Number of the first, from 1. */
  readonly first: number;
  readonly rows: readonly Row[];
}

/** What a thread answers to a batch. */
export type BatchAnswer =
  | EncodedBatch
  | { readonly error: { readonly code: string; readonly message: string; readonly hint: string | null } };

/** The rows of a batch back to back. */
export interface EncodedBatch {
  /** [row] */
  readonly lengths: Uint32Array;
  /** [row] 1: cut; 2: text lost. */
  readonly flags: Uint8Array;
  readonly tokens: Int32Array;
  readonly labels: Int32Array;
  /** null: 1 everywhere. */
  readonly weights: Float32Array | null;
  /** What is to be said of the template; null: nothing. */
  readonly remark: string | null;
}

export function packRows(rows: readonly KeptRow[], remark: string | null): EncodedBatch {
  const total = rows.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const packed: EncodedBatch = {
    lengths: Uint32Array.from(rows, ({ tokens }) => tokens.length),
    flags: Uint8Array.from(rows, ({ truncated, textLost }) => (truncated ? 1 : 0) | (textLost ? 2 : 0)),
    tokens: new Int32Array(total),
    labels: new Int32Array(total),
    weights: rows.some(({ weights }) => weights != null) ? new Float32Array(total).fill(1) : null,
    remark,
  };
  let begin = 0;
  for (const { tokens, labels, weights } of rows) {
    packed.tokens.set(tokens, begin);
    packed.labels.set(labels, begin);
    if (weights != null) packed.weights!.set(weights, begin);
    begin += tokens.length;
  }
  return packed;
}

export function addBatch(store: RowStore, { lengths, flags, tokens, labels, weights }: EncodedBatch): void {
  let begin = 0;
  for (const [row, length] of lengths.entries()) {
    const part = <T extends Int32Array | Float32Array>(values: T) => values.subarray(begin, begin + length) as T;
    const own = weights === null ? null : part(weights);
    const weighted = own?.some((weight) => weight !== 1) ? own : null;
    store.add(
      { tokens: part(tokens), labels: part(labels), weights: weighted },
      (flags[row]! & 1) !== 0,
      (flags[row]! & 2) !== 0,
    );
    begin += length;
  }
}

/** What a thread threw, as it was. */
export function thrownThere({
  code,
  message,
  hint,
}: {
  code: string;
  message: string;
  hint: string | null;
}): PipeloraError {
  return new PipeloraError(isErrorCode(code) ? code : "PL_INTERNAL", message, hint === null ? {} : { hint });
}
