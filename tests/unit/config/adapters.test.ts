import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { adapterConfigs, isAdaptersOwn } from "../../../src/config/adapters.ts";
import { gridAdapters } from "../../../src/config/grid.ts";
import { type FlagValues, loadConfig } from "../../../src/config/load.ts";
import type { Command, Option } from "../../../src/config/option.ts";
import { OPTIONS, type OptionKey } from "../../../src/config/options.ts";

const BASE = { model: "m", output_dir: "out", dataset: "rows.jsonl" };

/** Loads a run of the adapters that stand in a file of this text. */
async function load(text: string, flags: FlagValues = {}, command: Command = "train") {
  const folder = mkdtempSync(join(tmpdir(), "adapters-"));
  try {
    const path = join(folder, "adapters.yaml");
    writeFileSync(path, text);
    const config = await loadConfig(command, { ...BASE, adapters: path, ...flags });
    return adapterConfigs(command, config);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const refused = (text: string, message: RegExp, flags: FlagValues = {}) =>
  assert.rejects(load(text, flags), (error: { code: string; message: string }) => {
    assert.equal(error.code, "PL_CONFIG_INVALID");
    assert.match(error.message, message);
    return true;
  });

test("each adapter has the run's settings with its own in their place, and a folder of its own", async () => {
  const text = `
a:
b: {learning_rate: 1e-3, lora_r: 16, target_modules: "q_proj,v_proj", use_dora: yes}
c: {dataset: other.jsonl, max_steps: 7}
`;
  const [a, b, c] = await load(text, { lora_alpha: "32", learning_rate: "5e-4", logging_dir: "events" });
  assert.deepEqual([a!.name, a!.config.learning_rate, a!.config.lora_alpha], ["a", 5e-4, 32]);
  assert.deepEqual([b!.config.learning_rate, b!.config.lora_r, b!.config.lora_alpha], [1e-3, 16, 32]);
  assert.deepEqual([b!.config.target_modules, b!.config.use_dora], [["q_proj", "v_proj"], true]);
  assert.deepEqual([c!.config.dataset, c!.config.max_steps, a!.config.dataset], ["other.jsonl", 7, "rows.jsonl"]);
  assert.deepEqual([c!.config.output_dir, c!.config.logging_dir], [join("out", "c"), join("events", "c")]);
  assert.ok([a, b, c].every((one) => one!.config.adapters === null));
  const wrapped = await load("adapters: {x: {lora_r: 2}}");
  assert.deepEqual(
    wrapped.map(({ name, config }) => [name, config.lora_r]),
    [["x", 2]],
  );
});

test("without adapters a run is one, of no name, and nothing of it changes", async () => {
  const config = await loadConfig("train", BASE);
  assert.deepEqual(adapterConfigs("train", config), [{ name: null, config }]);
});

test("a YAML file of a run may hold the adapters in place", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "adapters-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const path = join(folder, "run.yaml");
  writeFileSync(
    path,
    "model: m\noutput_dir: out\nadapters:\n  p: {dataset: d.jsonl}\n  q: {dataset: e.jsonl, seed: 3}\n",
  );
  const config = await loadConfig("train", { config: path });
  assert.deepEqual(
    adapterConfigs("train", config).map(({ config: own }) => [own.dataset, own.seed]),
    [
      ["d.jsonl", 42],
      ["e.jsonl", 3],
    ],
  );
});

test("every setting is an adapter's own, or refused with whose it is", async () => {
  for (const [key, option] of Object.entries(OPTIONS) as [OptionKey, Option][]) {
    const own = isAdaptersOwn(key);
    if (own) assert.ok(option.commands.includes("train"), key);
    else {
      const whose = /is the base's|is the cluster's|is the whole run's|is no setting of `train`/;
      await refused(`a: {${key}: 1}`, new RegExp(`adapter "a": ${key} (${whose.source})`));
    }
  }
  for (const key of ["model", "load_in_4bit", "torch_dtype", "hub"]) await refused(`a: {${key}: x}`, /is the base's/);
  for (const key of ["device_map", "workers", "replicas", "schedule", "listen"]) {
    await refused(`a: {${key}: x}`, /is the cluster's/);
  }
  for (const key of ["gradient_checkpointing", "output_dir", "resume_from_checkpoint", "adapters"]) {
    await refused(`a: {${key}: x}`, /is the whole run's/);
  }
});

test("what is wrong is told of every adapter at once, before anything is read", async () => {
  const text = `
one: {lora_rank: 8, learning_rate: fast}
two: {lora_r: 0, model: other}
three: {eval_strategy: steps}
four: 5
`;
  await refused("a: 5", /adapters/);
  await refused(text.replace("four: 5\n", ""), /adapter "one": unknown key "lora_rank"; did you mean lora_r/);
  await refused(text.replace("four: 5\n", ""), /adapter "one": learning_rate: .*got "fast"/);
  await refused(text.replace("four: 5\n", ""), /adapter "two": lora_r: /);
  await refused(text.replace("four: 5\n", ""), /adapter "three": --eval-strategy needs/);
  await refused("{}", /at least one/);
  await refused("a: {adapter: dir, lora_r: 4}", /adapter "a": --lora-r contradicts --adapter/);
  await refused("a: {}", /adapter "a": .*dataset/, { dataset: "" }).catch(() => {});
});

test("beginnings that are taken out of the base go together where all are the same, else what differs is named", async () => {
  await load("b: {init_lora_weights: pissa}");
  await load("a: {learning_rate: 1e-3, lora_dropout: 0.1}\nb: {max_steps: 3}", { init_lora_weights: "pissa_niter_4" });
  await load("a: {seed: 1}\nb: {seed: 2}", { init_lora_weights: "olora" });
  const takes =
    /adapter "b": init_lora_weights pissa of "a" takes its beginning out of the base.*must begin alike, but/;
  const differ = (own: string, keys: string) =>
    refused(`a: {}\nb: {${own}}`, new RegExp(`${takes.source} ${keys}\\.`), { init_lora_weights: "pissa" });
  await differ("lora_r: 4", "lora_r differs");
  await differ("seed: 4", "seed differs");
  await differ("lora_alpha: 3, use_rslora: true", "lora_alpha, use_rslora differ");
  await differ("init_lora_weights: true", "init_lora_weights differs");
  await differ("target_modules: q_proj, layers_to_transform: [0]", "target_modules, layers_to_transform differ");
  await refused(
    "b: {adapter: there}\na: {init_lora_weights: olora}",
    /adapter "b": init_lora_weights olora of "a".*but adapter, init_lora_weights differ\./,
  );
});

test("names are folders: none that leaves the run's, is the run's own, or another's", async () => {
  const strange = [
    "../up",
    "a/b",
    ".hidden",
    "runs",
    "checkpoint-3",
    "sweep.yaml",
    "metrics.jsonl",
    "a b",
    "",
    "é",
    "a".repeat(121),
  ];
  for (const name of strange) {
    await refused(JSON.stringify({ [name]: {} }), /expected a name that can be a folder's/);
  }
  await refused("Run: {}\nrun: {}", /would be the same folder/);
  await fc.assert(
    fc.asyncProperty(fc.string({ maxLength: 12 }), async (name) => {
      const plain = /^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name) && !/^(runs|checkpoint-\d+|sweep\.\w+)$/i.test(name);
      const loading = load(JSON.stringify({ [name]: {} }));
      if (plain) assert.equal((await loading)[0]!.config.output_dir, join("out", name));
      else await assert.rejects(loading, { code: "PL_CONFIG_INVALID" });
    }),
    { numRuns: 60 },
  );
});

test("what a run of several can't do is refused by name", async () => {
  await load("a: {sample_prompts: p.txt, eval_strategy: steps, eval_steps: 5, validation_split: 0.1}", {
    http: "127.0.0.1:0",
  });
  await refused("a: {}", /--resume-from-checkpoint DIR is one adapter's/, {
    resume_from_checkpoint: "out/checkpoint-3",
  });
  await load("a: {}", { resume_from_checkpoint: true });
  await load("a: {}", { resume_from_checkpoint: "auto" });
});

test("a sweep's grid has every combination once; lists have semicolons between them", async () => {
  const flags = {
    ...BASE,
    learning_rate: "1e-4,2e-4,3e-4",
    lora_r: "8, 16",
    target_modules: "q_proj,v_proj;all-linear",
    lora_alpha: "32",
  };
  const config = await loadConfig("sweep", flags);
  const adapters = adapterConfigs("train", config);
  assert.equal(adapters.length, 12);
  assert.equal(
    new Set(adapters.map(({ config: own }) => JSON.stringify([own.learning_rate, own.lora_r, own.target_modules])))
      .size,
    12,
  );
  assert.ok(adapters.every(({ config: own }) => own.lora_alpha === 32));
  assert.equal(adapters[0]!.name, "learning_rate-1e-4_lora_r-8_target_modules-q-proj-v-proj");
  await assert.rejects(loadConfig("sweep", BASE), /several values/);
  await assert.rejects(
    loadConfig("sweep", { ...BASE, lora_r: "8,many" }),
    /--lora-r: expected a whole number, got "many"/,
  );
  await assert.rejects(loadConfig("sweep", { ...BASE, workers: "2,4" }), /--workers/);
  await assert.rejects(loadConfig("sweep", { ...BASE, learning_rate: "1e-4,2e-4,0.0001" }), {
    message: "--learning-rate: expected different values, got 0.0001 twice",
  });
  await assert.rejects(loadConfig("sweep", { ...BASE, lora_r: "8,,," }), { message: /^[^\n]*got ""[^\n]*$/ });
  await assert.rejects(loadConfig("sweep", { ...BASE, lora_r: "8,16", adapters: "x.yaml" }), /--adapters/);
});

test("names of a grid's points stay folders of their own, whatever the values are", () => {
  fc.assert(
    fc.property(
      fc.uniqueArray(fc.constantFrom<OptionKey>("lora_r", "learning_rate", "dataset", "target_modules"), {
        minLength: 1,
      }),
      fc.array(fc.string(), { minLength: 2, maxLength: 5 }),
      (keys, texts) => {
        const grid = new Map(keys.map((key) => [key, texts.map((text) => ({ value: text, text }))] as const));
        const names = Object.keys(gridAdapters(grid));
        assert.equal(names.length, texts.length ** keys.length);
        assert.equal(new Set(names.map((name) => name.toLowerCase())).size, names.length);
        for (const name of names) assert.match(name, /^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$/);
      },
    ),
  );
});
