import assert from "node:assert/strict";
import { after, test } from "node:test";
import fc from "fast-check";
import { type EngineOptions, loadEngine, type SamplingSettings } from "../../../src/engine/index.ts";
import { Sampler } from "../../../src/worker/sampling.ts";
import { smallArch } from "../../support/small-arch.ts";

const OPTIONS: EngineOptions = {
  device: "cpu",
  threads: 1,
  computeDtype: "float32",
  arch: smallArch(),
  arenaBytes: 16 << 20,
};
const engine = await loadEngine().openEngine(OPTIONS);
after(() => engine.close());

const all: SamplingSettings = { temperature: 1, topP: 1, topK: 0, repetitionPenalty: 1 };
const greedy = { ...all, topK: 1 };

async function draw(
  logits: readonly number[],
  settings = all,
  share = 0,
  seen: readonly number[] = [],
): Promise<number> {
  const values = Float32Array.from(logits);
  const tensor = await engine.write([new Uint8Array(values.buffer)], [1, values.length], "float32");
  try {
    return await engine.sample(tensor, settings, Int32Array.from(seen), Math.floor(share * 2 ** 32));
  } finally {
    tensor.free();
  }
}

/** What Engine.sample promises, said plainly: all tokens sorted, weights in whole units of 2^-40. */
function expected(
  logits: readonly number[],
  settings: SamplingSettings,
  share: number,
  seen: readonly number[],
): number {
  const penalty = Math.fround(settings.repetitionPenalty);
  const values = Float32Array.from(logits);
  if (penalty !== 1)
    for (const id of seen) values[id] = values[id]! > 0 ? values[id]! / penalty : values[id]! * penalty;
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
        repetitionPenalty: fc.constantFrom(1, 1.1, 2, 0.5),
      }),
      share,
      fc.uniqueArray(fc.nat(299), { maxLength: 50 }),
      async (logits, settings, at, ids) => {
        const seen = ids.filter((id) => id < logits.length);
        assert.equal(await draw(logits, settings, at, seen), expected(logits, settings, at, seen));
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
  assert.equal(await draw([3, 2, -1], settings, 0, [0]), 1);
  assert.equal(await draw([-1, -1.5, -3], settings, 0, [0]), 1);
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
  await assert.rejects(draw([1, 2], { ...all, repetitionPenalty: 2 }, 0, [2]), { code: "PL_TENSOR_MISMATCH" });
});

test("a reply's sampler remembers what was said, once each, and draws the same for the same seed", async () => {
  const logits = async (values: readonly number[]) => {
    const held = Float32Array.from(values);
    return engine.write([new Uint8Array(held.buffer)], [1, held.length], "float32");
  };
  const settings = { ...all, doSample: false, seed: 1, repetitionPenalty: 4 };
  const sampler = new Sampler(engine, settings, [0, 0]);
  const tokens: number[] = [];
  for (let round = 0; round < 4; round++) tokens.push(await sampler.choose(await logits([4, 3, 2, 1.5]), round));
  assert.deepEqual(tokens, [1, 2, 3, 0]);

  const replies = [7, 7, 8].map(async (seed) => {
    const drawn = new Sampler(engine, { ...all, doSample: true, seed }, []);
    const ids: number[] = [];
    for (let round = 0; round < 20; round++) ids.push(await drawn.choose(await logits(new Array(50).fill(0)), round));
    return ids.join();
  });
  const [first, again, other] = await Promise.all(replies);
  assert.equal(first, again);
  assert.notEqual(first, other);
});
