import { parentPort, workerData } from "node:worker_threads";
import { toPipeloraError } from "../common/errors.ts";
import { loadTokenizer } from "../formats/tokenizer/load.ts";
import { encodeRow } from "./encode-row.ts";
import { type BatchAnswer, packRows, type RowBatch, type ThreadStart } from "./encoded-batch.ts";
import { type RowTemplate, rowTemplate } from "./templates.ts";

const port = parentPort!;
const { recipe, options } = workerData as ThreadStart;
let loading: Promise<RowTemplate> | null = null;

/** Loaded when text comes. */
function template(): Promise<RowTemplate> {
  loading ??= loadTokenizer(recipe.modelDir).then((tokenizer) =>
    rowTemplate(tokenizer, { ...recipe, now: new Date(recipe.now) }),
  );
  return loading;
}

async function encode({ path, first, rows }: RowBatch): Promise<BatchAnswer> {
  try {
    const made = rows.some(({ kind }) => kind !== "ids") ? await template() : null;
    const kept = rows.map((row, index) => encodeRow(row, made, { path, number: first + index }, options));
    return packRows(kept, made?.remark ?? null);
  } catch (error) {
    const { code, message, hint = null } = toPipeloraError(error);
    return { error: { code, message, hint } };
  }
}

port.on("message", async (batch: RowBatch) => {
  const answer = await encode(batch);
  const moved =
    "error" in answer ? [] : [answer.tokens.buffer, answer.labels.buffer, answer.lengths.buffer, answer.flags.buffer];
  port.postMessage(answer, moved as ArrayBuffer[]);
});
