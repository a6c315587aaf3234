import assert from "node:assert/strict";
import { test } from "node:test";
import { Philox } from "../../../src/common/philox.ts";
import { Draws, GREEDY } from "../../../src/generation/draws.ts";

const asked = (draws: Draws) => {
  const { seen, biased, biases, draw, settings } = draws.next();
  return { seen: [...seen], biases: Object.fromEntries([...biased].map((id, i) => [id, biases[i]])), draw, settings };
};

test("penalties see prompt and reply as transformers' does, the reply alone as OpenAI's do", () => {
  const draws = new Draws(
    {
      ...GREEDY,
      repetitionPenalty: 1.5,
      frequencyPenalty: 0.5,
      presencePenalty: 0.25,
      logitBias: new Map([
        [3, 2],
        [9, -100],
      ]),
    },
    [7, 7, 8],
  );
  assert.deepEqual(asked(draws).seen, [7, 8]);
  assert.deepEqual(asked(draws).biases, { 3: 2, 9: -100 });
  for (const token of [3, 8, 3]) draws.add(token);
  const { seen, biases } = asked(draws);
  assert.deepEqual(seen, [7, 8, 3]);
  assert.deepEqual(biases, { 3: 2 - 2 * 0.5 - 0.25, 8: -0.75, 9: -100 });
});

test("greedy asks for the likeliest token alone; nothing is sent that has no effect", () => {
  const draws = new Draws({ ...GREEDY, temperature: 3, topP: 0.1, minP: 0.5 }, [1, 2, 3]);
  draws.add(5);
  const { settings, seen, biases } = asked(draws);
  assert.deepEqual(settings, { temperature: 1, topP: 1, topK: 1, minP: 0, repetitionPenalty: 1 });
  assert.deepEqual([seen, biases], [[], {}]);
});

test("a draw depends on the seed and how many were before, on nothing else", () => {
  const words = (seed: number, prompt: number[]) => {
    const draws = new Draws({ ...GREEDY, doSample: true, seed }, prompt);
    return Array.from({ length: 5 }, (_, i) => {
      const { draw } = draws.next();
      draws.add(i * 3);
      return draw;
    });
  };
  const block = new Uint32Array(4);
  for (const seed of [0, 7, 2 ** 40 + 5]) {
    const expected = [0, 1, 2, 3, 4].map((round) => {
      new Philox(seed, Math.floor(seed / 2 ** 32)).block(round, 0, 0, 0, block);
      return block[0];
    });
    assert.deepEqual(words(seed, [1]), expected);
    assert.deepEqual(words(seed, [5, 6]), expected);
  }
  assert.notDeepEqual(words(1, []), words(2, []));
});
