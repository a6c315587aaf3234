import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { DEFAULT_EVA, DEFAULT_LORA_SETTINGS, type LoraSettings } from "../../../../src/common/lora-settings.ts";
import { EvaSearch } from "../../../../src/coordinator/run/eva/eva-search.ts";
import { evaInputs, evaSettings, rankBudget } from "../../../../src/coordinator/run/eva/eva-settings.ts";
import { rankDistribution, type SharedInput } from "../../../../src/coordinator/run/eva/rank-distribution.ts";
import { loadEngine } from "../../../../src/engine/index.ts";
import { modelSpecFromConfig } from "../../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../../src/models/lora-targets.ts";
import { IncrementalPca, similarities } from "../../../../src/worker/steps/incremental-pca.ts";

/** Numbers from a seed, in (-1, 1). */
function drawer(seed: number): () => number {
  let state = seed * 2654435761 + 1;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
}

const LLAMA = {
  ...{ model_type: "llama", hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2 },
  ...{ num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 100 },
};
const spec = modelSpecFromConfig(LLAMA);
const resolve = (settings: Partial<LoraSettings>, of = spec) =>
  resolveLoraTargets(of, {
    ...{ ...DEFAULT_LORA_SETTINGS, targetModules: "all-linear" },
    ...{ initLoraWeights: "eva", evaConfig: DEFAULT_EVA, ...settings },
  });

describe("inputs", () => {
  test("modules of one input have one decomposition, with the most components that any of them gets", () => {
    const lora = resolve({ r: 4, rankPattern: { k_proj: 5, "layers.1.mlp.down_proj": 3 } });
    const inputs = evaInputs(spec, lora, { ...DEFAULT_EVA, rho: 1.5 });
    const short = inputs.map(({ modules, components }) => [modules.map((name) => name.split(".").at(-1)), components]);
    const block = (down: number) => [
      // 5 · 1.5 = 7.5, which Python rounds to 8.
      [["q_proj", "k_proj", "v_proj"], 8],
      [["o_proj"], 6],
      [["gate_proj", "up_proj"], 6],
      [["down_proj"], down],
    ];
    // 3 · 1.5 = 4.5, which Python rounds to 4.
    assert.deepEqual(short, [...block(6), ...block(4)]);
    assert.equal(rankBudget(lora), 14 * 4 + 2 - 1);
  });

  test("in parallel, attention and MLP read the same norm", () => {
    const parallel = modelSpecFromConfig({ ...LLAMA, model_type: "cohere2", sliding_window: 8 });
    const [first] = evaInputs(parallel, resolve({}, parallel), DEFAULT_EVA);
    assert.deepEqual(
      first!.modules.map((name) => name.split(".").at(-1)),
      ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"],
    );
  });

  test("more components than columns, and what EVA has no form for, are refused by name", () => {
    assert.throws(
      () => evaInputs(spec, resolve({ r: 40 }), DEFAULT_EVA),
      /rho 2 asks for 80 components of .*q_proj, whose input has 64/,
    );
    // An unusually high rho is bounded, as in peft: 100 / 8.
    assert.throws(() => evaInputs(spec, resolve({ r: 8 }), { ...DEFAULT_EVA, rho: 5000 }), /asks for 96 components/);
    assert.throws(() => resolve({ targetModules: ["q_proj", "lm_head"] }), /not for lm_head/);
    assert.throws(() => resolve({ targetModules: ["embed_tokens"] }), /not for model\.embed_tokens/);
    assert.throws(() => resolve({ useDora: true }), /not for use_dora/);
    const experts = modelSpecFromConfig({ ...LLAMA, model_type: "mixtral" });
    assert.throws(
      () => resolve({ targetModules: [], targetParameters: ["experts.down_proj"] }, experts),
      /not for .*experts/,
    );
  });
});

describe("ranks", () => {
  const draw = drawer(5);

  test("the largest shares of all modules win, whatever there is: against a count of those above the border", () => {
    for (let trial = 0; trial < 200; trial++) {
      const whole = (most: number) => 1 + Math.floor(((draw() + 1) / 2) * most);
      const inputs: SharedInput[] = Array.from({ length: whole(6) }, (_, input) => ({
        modules: Array.from({ length: whole(3) }, (_own, place) => `${input}.${place}`),
        components: whole(6),
      }));
      const explained = new Map(
        inputs.map(({ modules, components }) => [
          modules[0]!,
          Float64Array.from({ length: components }, () => (draw() + 1) / 2).sort((a, b) => b - a),
        ]),
      );
      const all = inputs.reduce((sum, { modules, components }) => sum + modules.length * components, 0);
      const budget = Math.min(all, whole(all));
      const ranks = rankDistribution(inputs, explained, budget);
      assert.equal(
        [...ranks.values()].reduce((sum, rank) => sum + rank, 0),
        budget,
      );
      const least = Math.min(
        ...inputs.flatMap(({ modules }) => {
          const own = explained.get(modules[0]!)!;
          return modules.flatMap((module) => (ranks.get(module) === 0 ? [] : [own[ranks.get(module)! - 1]!]));
        }),
      );
      for (const { modules } of inputs) {
        const shares = [...explained.get(modules[0]!)!];
        const [above, from] = [shares.filter((one) => one > least).length, shares.filter((one) => one >= least).length];
        for (const module of modules) {
          assert.ok(ranks.get(module)! >= above && ranks.get(module)! <= from, `${module}: ${ranks.get(module)}`);
          assert.ok(ranks.get(modules[0]!)! >= ranks.get(module)!);
        }
      }
    }
  });

  test("an input is left alone once the components that its modules get stay, and taken up again when they get more", () => {
    const inputs = [
      { modules: ["a", "a2"], components: 3 },
      { modules: ["b"], components: 3 },
    ];
    const search = new EvaSearch(inputs, { budget: 4, tau: 0.9 });
    const fit = (explained: number[], similar: number[]) => ({
      explained: Float64Array.from(explained),
      similar: Float64Array.from(similar),
    });
    assert.deepEqual(search.wanted(), ["a", "b"]);
    // b's batch had too few rows.
    search.heard(new Map([["a", fit([0.5, 0.2, 0.1], [])]]));
    assert.deepEqual(search.unheard(), ["b"]);
    assert.deepEqual(search.wanted(), ["a", "b"]);
    search.heard(
      new Map([
        ["a", fit([0.5, 0.1, 0.05], [0.99, 0.2, 0.1])],
        ["b", fit([0.3, 0.2, 0.1], [])],
      ]),
    );
    assert.deepEqual([...search.ranks.values()], [1, 1, 2]);
    assert.deepEqual(search.wanted(), ["b"]);
    search.heard(new Map([["b", fit([0.3, 0.08, 0.07], [0.95, 0.95, -0.95])]]));
    // a has two ranks now, and its second component has yet to stay.
    assert.deepEqual([...search.ranks.values()], [2, 1, 1]);
    assert.deepEqual(search.wanted(), ["a"]);
    search.heard(new Map([["a", fit([0.5, 0.1, 0.05], [0.99, 0.99, 0.1])]]));
    assert.deepEqual(search.wanted(), []);
  });

  test("settings: patterns by whole names, alpha with the rank or not, modules without a rank left out", () => {
    const lora = resolve({ r: 4, alpha: 8, targetModules: ["q_proj", "down_proj"], rankPattern: { down_proj: 2 } });
    const names = lora.targets.map(({ name }) => name);
    const ranks = new Map(names.map((name, index) => [name, [4, 0, 7, 2][index]!]));
    const settings = evaSettings(spec, lora, ranks);
    assert.deepEqual(settings.rankPattern, { [names[2]!]: 7, [names[3]!]: 2 });
    assert.deepEqual(settings.alphaPattern, { [names[2]!]: 14 });
    const again = resolveLoraTargets(spec, settings);
    assert.deepEqual(
      again.targets.map(({ name, r, scale }) => [name, r, scale]),
      [
        [names[0], 4, 2],
        [names[2], 7, 2],
        [names[3], 2, 4],
      ],
    );
    const fixed = resolve({ ...lora.settings, evaConfig: { ...DEFAULT_EVA, adjustScalingFactors: false } });
    assert.deepEqual(evaSettings(spec, fixed, ranks).alphaPattern, {});
  });
});

test("principal components of rows batch by batch: those of all rows at once where nothing is cut off", async () => {
  const [columns, draw] = [6, drawer(9)];
  const pca = new IncrementalPca(loadEngine(), { columns, count: columns, threads: 1 });
  const rows: number[][] = [];
  for (const n of [7, 6, 40, 11]) {
    const own = Array.from({ length: n }, () =>
      Array.from({ length: columns }, (_, c) => 3 + c + (columns - c) * draw()),
    );
    rows.push(...own);
    const before = pca.components;
    await pca.add(Float32Array.from(own.flat()));
    const mean = Array.from({ length: columns }, (_, c) => rows.reduce((sum, row) => sum + row[c]!, 0) / rows.length);
    const scatter = (a: number, b: number) =>
      rows.reduce((sum, row) => sum + (row[a]! - mean[a]!) * (row[b]! - mean[b]!), 0);
    const total = mean.reduce((sum, _, c) => sum + scatter(c, c), 0);
    // C v = s² v of the rows' scatter.
    for (let k = 0; k < columns; k++) {
      const v = pca.components.subarray(k * columns, (k + 1) * columns);
      const square = pca.singularValues[k]! ** 2;
      for (let a = 0; a < columns; a++) {
        const made = v.reduce((sum, value, b) => sum + scatter(a, b) * value, 0);
        assert.ok(Math.abs(made - square * v[a]!) < 1e-4 * total, `component ${k} of ${rows.length} rows`);
      }
      assert.ok(Math.abs(pca.explained()[k]! - square / total) < 1e-6);
      assert.ok(Math.max(...v) >= Math.max(...v.map(Math.abs)) - 1e-7, "its largest number is positive");
    }
    if (before.length > 0) {
      for (const cosine of similarities(pca.components, before, columns)) assert.ok(Math.abs(cosine) <= 1 + 1e-6);
      assert.deepEqual(
        Array.from(similarities(before, before, columns), (one) => one.toFixed(5)),
        Array(columns).fill("1.00000"),
      );
    }
  }
});
