import { float32Of, int32Of } from "../../common/bytes.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { MicroBatch } from "../../engine/index.ts";
import type { MicroBatches__Output } from "../../rpc/generated/pipelora/v1/MicroBatches.ts";

/** The micro-batches of a request for the engine, as views of the request's bytes. Errors: PL_PROTOCOL_MISMATCH if these contradict each other. */
export function unpackMicroBatches(
  packed: MicroBatches__Output,
  pass: Pick<MicroBatch, "adapter" | "step" | "seed" | "training" | "labelSmoothing" | "noiseAlpha" | "lossScale">,
): MicroBatch[] {
  const rowTokens = int32Of(packed.rowTokens);
  const rowIds = int32Of(packed.rowIds);
  const tokens = packed.tokens.length === 0 ? null : int32Of(packed.tokens);
  const targets = packed.targets.length === 0 ? null : int32Of(packed.targets);
  const weights = packed.weights.length === 0 ? null : float32Of(packed.weights);
  const batchRows = int32Of(packed.batchRows);
  agree("rows of the micro-batches", batchRows, "row", [rowTokens.length, rowIds.length]);
  const perToken = [tokens, targets, weights].flatMap((values) => (values === null ? [] : [values.length]));
  agree("tokens of the rows", rowTokens, "token", perToken);
  let row = 0;
  let token = 0;
  return Array.from(batchRows, (rows, index): MicroBatch => {
    const cuSeqlens = new Int32Array(rows + 1);
    for (let own = 0; own < rows; own++) cuSeqlens[own + 1] = cuSeqlens[own]! + rowTokens[row + own]!;
    const end = token + cuSeqlens[rows]!;
    const batch = {
      ...pass,
      index,
      cuSeqlens,
      rowIds: rowIds.subarray(row, row + rows),
      tokens: tokens?.subarray(token, end) ?? null,
      targets: targets?.subarray(token, end) ?? null,
      weights: weights?.subarray(token, end) ?? null,
    };
    row += rows;
    token = end;
    return batch;
  });
}

/** Checks that no count is negative and that they add up to the number of counted values. */
function agree(what: string, counts: Int32Array, of: string, lengths: readonly number[]): void {
  const sum = counts.reduce((total, count) => (count < 0 ? Number.NaN : total + count), 0);
  const other = lengths.find((length) => length !== sum);
  if (other === undefined && !Number.isNaN(sum)) return;
  throw new PipeloraError("PL_PROTOCOL_MISMATCH", `the ${what} add up to ${sum}, and ${other} values a ${of} came`);
}
