import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesOf } from "../../../src/common/bytes.ts";
import { packMicroBatches } from "../../../src/data/micro-batches.ts";
import { unpackMicroBatches } from "../../../src/worker/steps/micro-batches.ts";

const row = (tokens: number[], rowId: number) => ({
  tokens: Int32Array.from(tokens),
  labels: Int32Array.from(tokens, (token) => token + 10),
  weight: 1 / (tokens[0]! + 1),
  weights: null,
  rowId,
});
const PASS = { step: 3, seed: 7, training: true, labelSmoothing: 0.1, noiseAlpha: 5, lossScale: 2 };
const EMPTY = Buffer.alloc(0);

test("what the coordinator packs, a rank unpacks, with the parts that it was sent", () => {
  const packed = packMicroBatches([[row([1, 2, 3], 0), row([4], 1)], [row([5, 6], 2)]]);
  const bytes = {
    ...{ batchRows: bytesOf(packed.batchRows), rowTokens: bytesOf(packed.rowTokens), rowIds: bytesOf(packed.rowIds) },
    ...{ tokens: bytesOf(packed.tokens), targets: bytesOf(packed.targets), weights: bytesOf(packed.weights) },
  };
  const [first, second, ...none] = unpackMicroBatches(bytes, PASS);
  assert.equal(none.length, 0);
  assert.deepEqual(
    { ...first, tokens: [...first!.tokens!], cuSeqlens: [...first!.cuSeqlens], rowIds: [...first!.rowIds] },
    {
      ...{ ...PASS, index: 0, cuSeqlens: [0, 3, 4], rowIds: [0, 1], tokens: [1, 2, 3, 4] },
      ...{ targets: packed.targets.subarray(0, 4), weights: packed.weights.subarray(0, 4) },
    },
  );
  assert.deepEqual([...second!.cuSeqlens], [0, 2]);
  assert.deepEqual([...second!.targets!], [16, -100]);
  const bounds = unpackMicroBatches({ ...bytes, tokens: EMPTY, targets: EMPTY, weights: EMPTY }, PASS);
  assert.deepEqual([bounds[1]!.tokens, bounds[1]!.targets, bounds[1]!.weights], [null, null, null]);
  assert.deepEqual(
    unpackMicroBatches(
      { batchRows: EMPTY, rowTokens: EMPTY, rowIds: EMPTY, tokens: EMPTY, targets: EMPTY, weights: EMPTY },
      PASS,
    ),
    [],
  );
  const refused: [string, object][] = [
    ["a row too many", { batchRows: bytesOf(Int32Array.of(2, 2)) }],
    ["rows that take memory for themselves", { batchRows: bytesOf(Int32Array.of(0x7fffffff)) }],
    ["rows below none", { batchRows: bytesOf(Int32Array.of(4, -1)) }],
    ["a token too few", { tokens: bytes.tokens.subarray(4) }],
    ["targets of other rows", { targets: EMPTY, weights: bytes.weights.subarray(4) }],
  ];
  for (const [what, change] of refused) {
    const error = { code: "PL_PROTOCOL_MISMATCH" };
    assert.throws(() => unpackMicroBatches({ ...bytes, ...change }, PASS), error, what);
  }
});
