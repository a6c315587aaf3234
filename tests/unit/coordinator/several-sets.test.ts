import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import fc from "fast-check";
import { createLogger } from "../../../src/common/log.ts";
import type { RowSets } from "../../../src/config/groups/data.ts";
import { defaultConfig, loadConfig } from "../../../src/config/load.ts";
import { readTrainingData, type TrainingData } from "../../../src/coordinator/planning/training-data.ts";
import type { Dataset } from "../../../src/data/dataset.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";
import { model } from "../plan/models.ts";

const log = createLogger({ format: "text", level: "silent" });

/** Files of ready ids: row r of set s is the ids [1, s, r, …]. */
function filesOf(t: TestContext, sizes: readonly number[]): string[] {
  const root = temporaryFolder(t);
  return sizes.map((size, set) => {
    const path = join(root, `${"abcdef"[set]}.jsonl`);
    const lines = Array.from({ length: size }, (_, row) => JSON.stringify({ input_ids: [1, set, row] }));
    writeFileSync(path, lines.join("\n"));
    return path;
  });
}

function read(dataset: RowSets, changes: object = {}): Promise<TrainingData> {
  const config = { ...defaultConfig(), dataset, ...changes };
  return readTrainingData(config, { dir: "/nowhere", spec: model("qwen2.5-0.5b") }, log);
}

const rowsOf = (data: Dataset) =>
  Array.from({ length: data.size }, (_, row) => [...data.row(row).tokens.slice(1)].join());

test("without weights every row comes once, whatever is held out; what is held out is each set's own share", async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 2, max: 30 }), { minLength: 1, maxLength: 4 }),
      fc.constantFrom(0, 0.1, 0.4),
      fc.integer({ min: 0, max: 99 }),
      async (sizes, validation_split, seed) => {
        const { train, evaluation, parts } = await read(filesOf(t, sizes), { validation_split, seed });
        const all = sizes.flatMap((size, set) => Array.from({ length: size }, (_, row) => `${set},${row}`));
        const held = evaluation === null ? [] : rowsOf(evaluation);
        assert.deepEqual([...rowsOf(train), ...held].sort(), all.sort());
        for (const [set, size] of sizes.entries()) {
          assert.equal(held.filter((row) => row.startsWith(`${set},`)).length, Math.ceil(validation_split * size));
          assert.equal(parts[set]!.heldOut, Math.ceil(validation_split * size));
        }
      },
    ),
    { numRuns: 25 },
  );
});

test("with weights no row that is held out is trained on, and the shares are the weights", async (t) => {
  const [a, b] = filesOf(t, [40, 10]);
  const sets = [
    { path: a!, weight: 1 },
    { path: b!, weight: 3 },
  ];
  const { train, evaluation, parts } = await read(sets, { validation_split: 0.2 });
  const held = new Set(rowsOf(evaluation!));
  assert.equal(held.size, 10);
  assert.ok(rowsOf(train).every((row) => !held.has(row)));
  assert.deepEqual(
    parts.map(({ rows, own, heldOut }) => [rows, own, heldOut]),
    [
      [32, 32, 8],
      [96, 8, 2],
    ],
  );
});

test("one set as a list of one, or in a text, is the plain form; rows takes the first", async (t) => {
  const [a] = filesOf(t, [20]);
  for (const changes of [{}, { validation_split: 0.3 }]) {
    const plain = await read(a!, changes);
    for (const form of [[a!], [{ path: a! }], [{ path: a!, weight: 2 }]]) {
      const other = await read(form, changes);
      assert.deepEqual(rowsOf(other.train), rowsOf(plain.train));
      assert.deepEqual(other.order, plain.order);
    }
  }
  assert.deepEqual(rowsOf((await read([{ path: a!, rows: 3 }])).train), ["0,0", "0,1", "0,2"]);
  assert.equal((await read([{ path: a!, rows: 99 }])).train.size, 20);
});

test("messages name the set and its row; each set has columns of its own", async (t) => {
  const [a, b] = filesOf(t, [3, 4]);
  writeFileSync(b!, '{"input_ids": [1, 2]}\n{"ids": [1, 7]}\n');
  await assert.rejects(read(`${a},${b}`), { code: "PL_DATASET_INVALID", message: /b\.jsonl: row 2/ });
  writeFileSync(b!, '{"ids": [1, 7]}\n');
  const { train } = await read([a!, { path: b!, columns: { input_ids: "ids" } }]);
  assert.equal(train.size, 4);
  writeFileSync(b!, '{"input_ids": [1, 2], "labels": [-100, -100]}\n');
  await assert.rejects(read(`${a},${b}`), { message: /b\.jsonl: no token of any of the 1 rows/ });
  await assert.rejects(read([{ path: a!, rows: 1 }], { validation_split: 0.5 }), { message: /a\.jsonl: holding out/ });
  await assert.rejects(read(a!, { eval_dataset: [{ path: a!, weight: 1 }] }), { message: /no weight/ });
  await assert.rejects(read("data/none.jsonl"), {
    code: "PL_DATASET_INVALID",
    message: /data\/none\.jsonl can't be read/,
  });
});

test("the list in a YAML file; unknown keys and weights that mean nothing are refused", async (t) => {
  const path = join(temporaryFolder(t), "run.yaml");
  const load = (dataset: string) => {
    writeFileSync(path, `model: m\noutput_dir: o\ndataset:\n${dataset}`);
    return loadConfig("train", { config: path });
  };
  const found = await load(
    "  - a.jsonl\n  - path: b.jsonl\n    weight: 2\n    rows: 10\n    template: chat\n    columns: {instruction: q}\n",
  );
  assert.deepEqual(found.dataset, [
    "a.jsonl",
    { path: "b.jsonl", weight: 2, rows: 10, template: "chat", columns: { instruction: "q" } },
  ]);
  for (const entry of ["weight: 0", "weight: -1", "rows: 0", "share: 1", "template: none", "columns: {question: q}"]) {
    await assert.rejects(load(`  - path: b.jsonl\n    ${entry}\n`), { code: "PL_CONFIG_INVALID" }, entry);
  }
  await assert.rejects(load("  - weight: 1\n"), { code: "PL_CONFIG_INVALID" });
});
