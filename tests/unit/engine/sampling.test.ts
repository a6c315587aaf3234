import assert from "node:assert/strict";
import { after, test } from "node:test";
import fc from "fast-check";
import { type EngineOptions, loadEngine, type SamplingSettings } from "../../../src/engine/index.ts";
import { smallArch } from "../../support/models/small-arch.ts";

const OPTIONS: EngineOptions = {
  device: "cpu",
  threads: 1,
  computeDtype: "float32",
  arch: smallArch(),
  arenaBytes: 16 << 20,
};
const engine = await loadEngine().openEngine(OPTIONS);
after(() => engine.close());

const all: SamplingSettings = { temperature: 1, topP: 1, topK: 0, minP: 0, repetitionPenalty: 1 };
const greedy = { ...all, topK: 1 };

async function draw(
  logits: readonly number[],
  settings = all,
  share = 0,
  { seen = [], biases = {} }: Draw = {},
): Promise<number> {
  const [drawn] = await drawRows([logits], [{ settings, share, seen, biases }]);
  return drawn!.token;
}

interface Draw {
  readonly seen?: readonly number[];
  readonly biases?: Readonly<Record<number, number>>;
}

/** One token of each row of logits. */
async function drawRows(
  rows: readonly (readonly number[])[],
  draws: readonly (Draw & { settings: SamplingSettings; share: number; likeliest?: number })[],
) {
  const values = Float32Array.from(rows.flat());
  const tensor = await engine.write([new Uint8Array(values.buffer)], [rows.length, rows[0]!.length], "float32");
  try {
    return await Promise.all(
      draws.map(({ settings, share, seen = [], biases = {}, likeliest = -1 }, row) =>
        engine.sample(tensor, settings, {
          row,
          seen: Int32Array.from(seen),
          biased: Int32Array.from(Object.keys(biases), Number),
          biases: Float32Array.from(Object.values(biases)),
          draw: Math.floor(share * 2 ** 32),
          likeliest,
        }),
      ),
    );
  } finally {
    tensor.free();
  }
}

/** What Engine.sample promises, said plainly: all tokens sorted, weights in whole units of 2^-40. */
function expected(
  logits: readonly number[],
  settings: SamplingSettings,
  share: number,
  { seen = [], biases = {} }: Draw,
): number {
  const penalty = Math.fround(settings.repetitionPenalty);
  const values = Float32Array.from(logits);
  if (penalty !== 1)
    for (const id of seen) values[id] = values[id]! > 0 ? values[id]! / penalty : values[id]! * penalty;
  for (const [id, bias] of Object.entries(biases)) values[Number(id)]! += Math.fround(bias);
  let order = Array.from(values.keys()).sort((a, b) => values[b]! - values[a]! || a - b);
  if (settings.topK > 0) order = order.slice(0, settings.topK);
  const weight = (id: number) =>
    BigInt(Math.floor(Math.exp((values[id]! - values[order[0]!]!) / settings.temperature) * 2 ** 40));
  const total = order.reduce((sum, id) => sum + weight(id), 0n);
  let left = total;
  if (settings.topP < 1) {
    const needed = BigInt(Math.ceil(settings.topP * Number(total)));
    left = 0n;
    let count = 0;
    do left += weight(order[count++]!);
    while (count < order.length && left < needed);
    order = order.slice(0, count);
  }
  if (settings.minP > 0) {
    const least = BigInt(Math.ceil(settings.minP * 2 ** 40));
    order = order.filter((id, place) => place === 0 || weight(id) >= least);
    left = order.reduce((sum, id) => sum + weight(id), 0n);
  }
  const mark = (left * BigInt(Math.floor(share * 2 ** 32))) >> 32n;
  let sum = 0n;
  for (const id of order) {
    sum += weight(id);
    if (sum > mark) return id;
  }
  throw new Error("no token has a weight");
}

test("every draw is the one that sorting everything gives", async () => {
  const share = fc.integer({ min: 0, max: 2 ** 32 - 1 }).map((word) => word / 2 ** 32);
  // Few different logits, so that many are equal.
  const logit = fc.oneof(fc.integer({ min: -3, max: 3 }), fc.float({ min: -60, max: 60, noNaN: true }));
  await fc.assert(
    fc.asyncProperty(
      fc.array(logit, { minLength: 1, maxLength: 300 }),
      fc.record({
        temperature: fc.constantFrom(0.01, 0.3, 0.7, 1, 1.5, 5),
        topP: fc.constantFrom(0, 0.01, 0.5, 0.8, 0.95, 1),
        topK: fc.constantFrom(0, 1, 2, 20, 1000),
        minP: fc.constantFrom(0, 0, 0.001, 0.05, 0.5, 1),
        repetitionPenalty: fc.constantFrom(1, 1.1, 2, 0.5),
      }),
      share,
      fc.uniqueArray(fc.nat(299), { maxLength: 50 }),
      fc.dictionary(fc.nat(299).map(String), fc.constantFrom(-100, -1.5, 0.25, 2, 100), { maxKeys: 20 }),
      async (logits, settings, at, ids, added) => {
        const seen = ids.filter((id) => id < logits.length);
        const biases = Object.fromEntries(Object.entries(added).filter(([id]) => Number(id) < logits.length));
        const own = { seen, biases };
        assert.equal(await draw(logits, settings, at, own), expected(logits, settings, at, own));
      },
    ),
    { numRuns: 400 },
  );
});

test("greedy takes the largest logit, the lowest id on a tie", async () => {
  assert.equal(await draw([1, 3, 3, 2], greedy, 0.999), 1);
});

test("repetition penalty divides positive and multiplies negative logits of seen tokens", async () => {
  const settings = { ...greedy, repetitionPenalty: 2 };
  assert.equal(await draw([3, 2, -1], settings, 0, { seen: [0] }), 1);
  assert.equal(await draw([-1, -1.5, -3], settings, 0, { seen: [0] }), 1);
});

test("sampling follows the softmax", async () => {
  const counts = [0, 0, 0];
  for (let i = 0; i < 600; i++) counts[await draw([Math.log(1), Math.log(2), Math.log(3)], all, i / 600)]!++;
  assert.deepEqual(
    counts.map((count) => Math.round(count / 10)),
    [10, 20, 30],
  );
});

test("logits without a largest finite one, and settings out of range, are refused", async () => {
  for (const logits of [
    [1, Number.NaN, 2],
    [Number.POSITIVE_INFINITY, 0],
    [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY],
  ])
    await assert.rejects(draw(logits), { code: "PL_ENGINE_FAILED" });
  await assert.rejects(draw([1, 2], { ...all, temperature: 0 }), { code: "PL_TENSOR_MISMATCH" });
  await assert.rejects(draw([1, 2], { ...all, minP: 1.1 }), { code: "PL_TENSOR_MISMATCH" });
  await assert.rejects(draw([1, 2], all, 0, { biases: { 2: 1 } }), { code: "PL_TENSOR_MISMATCH" });
  await assert.rejects(
    drawRows(
      [[1, 2]],
      [
        { settings: all, share: 0 },
        { settings: all, share: 0 },
      ],
    ),
    {
      code: "PL_TENSOR_MISMATCH",
      message: /row 1 of logits/,
    },
  );
  await assert.rejects(draw([1, 2], { ...all, repetitionPenalty: 2 }, 0, { seen: [2] }), {
    code: "PL_TENSOR_MISMATCH",
  });
});

test("each row of a batch is drawn as it would be alone, and log-probabilities are the model's own", async () => {
  const rows = [
    [0, 1, 2, 3],
    [5, 1, 0, 2],
    [-1, -1, -1, 4],
  ];
  const settings = { ...all, temperature: 0.5, topK: 2, repetitionPenalty: 3 };
  const seen = [0, 3];
  const drawn = await drawRows(
    rows,
    rows.map((_, row) => ({ settings, share: 0.9, seen, likeliest: row })),
  );
  for (const [row, logits] of rows.entries()) {
    const { token, logProbability, likeliest } = drawn[row]!;
    assert.equal(token, await draw(logits, settings, 0.9, { seen }));
    const sum = Math.log(logits.reduce((total, logit) => total + Math.exp(logit), 0));
    assert.ok(Math.abs(logProbability - (logits[token]! - sum)) < 1e-5);
    const order = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]! || a - b).slice(0, row);
    assert.deepEqual(
      likeliest.map((likely) => likely.token),
      order,
    );
    for (const likely of likeliest) assert.ok(Math.abs(likely.logProbability - (logits[likely.token]! - sum)) < 1e-5);
  }
});
