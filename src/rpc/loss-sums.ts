import { bytesOf, float64Of } from "../common/bytes.ts";
import { PipeloraError } from "../common/errors.ts";
import type { Losses__Output } from "./generated/pipelora/v1/Losses.ts";

/**
 * What the ranks of a pipeline computed of some micro-batches' losses, put together. Losses are carried, not added: each micro-batch's is one
 * rank's and zero elsewhere, so their sum does not depend on who computed which. Error: PL_PROTOCOL_MISMATCH.
 */
export function addLosses(one: Losses__Output | null, another: Losses__Output | null): Losses__Output {
  const [a, b] = [told(one), told(another)];
  const [own, other] = [float64Of(a.sums), float64Of(b.sums)];
  const sums = Float64Array.from(
    { length: Math.max(own.length, other.length) },
    (_, at) => (own[at] ?? 0) + (other[at] ?? 0),
  );
  const first = b.failure !== null && (a.failure === null || b.failedMicroBatch < a.failedMicroBatch) ? b : a;
  return {
    sums: bytesOf(sums),
    labelTokens: a.labelTokens + b.labelTokens,
    correctTokens: a.correctTokens + b.correctTokens,
    failure: first.failure,
    failedMicroBatch: first.failedMicroBatch,
  };
}

export const NO_LOSSES: Losses__Output = {
  sums: Buffer.alloc(0),
  labelTokens: 0,
  correctTokens: 0,
  failure: null,
  failedMicroBatch: 0,
};

/** The loss of all micro-batches, added in their order. */
export function lossSum(losses: Losses__Output | null): number {
  return float64Of(told(losses).sums).reduce((sum, loss) => sum + loss, 0);
}

/** Error: PL_PROTOCOL_MISMATCH for an answer without losses. */
function told(losses: Losses__Output | null): Losses__Output {
  if (losses === null) throw new PipeloraError("PL_PROTOCOL_MISMATCH", "an answer came without losses");
  return losses;
}
