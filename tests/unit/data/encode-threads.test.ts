import assert from "node:assert/strict";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import type { Logger } from "../../../src/common/log.ts";
import { templatesOf } from "../../../src/coordinator/planning/row-templates.ts";
import { type EncodedSets, encodeSets } from "../../../src/data/encode.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";
import { fixture } from "../shared-data.ts";

const TEMPLATE =
  "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ strftime_now('%Y') }}{{ eos_token }}{% endfor %}";

function modelFolder(t: TestContext): string {
  const dir = temporaryFolder(t);
  cpSync(fixture("tokens/tokenizer.json"), join(dir, "tokenizer.json"));
  const config = JSON.parse(readFileSync(fixture("tokens/tokenizer_config.json"), "utf8")) as object;
  writeFileSync(join(dir, "tokenizer_config.json"), JSON.stringify({ ...config, chat_template: TEMPLATE }));
  return dir;
}

/** Every kind of row, over several batches. */
const ROWS = Array.from({ length: 1500 }, (_, row) => {
  const words = `Lily ran to ${row} ${"far ".repeat(row % 40)}`;
  const kinds = [
    { instruction: words, output: "ok" },
    {
      messages: [
        { role: "user", content: words },
        { role: "assistant", content: "yes", loss_weight: 0.5 },
      ],
    },
    { text: words },
    {
      segments: [
        { text: words, label: false },
        { text: "end", label: true },
      ],
    },
    { input_ids: [1, 2, row % 100], labels: [-100, 7, row % 100] },
  ];
  return kinds[row % kinds.length]!;
});

async function encoded(t: TestContext, rows: readonly object[], threads: number, limit: number | null = null) {
  const path = join(temporaryFolder(t), "rows.jsonl");
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
  const said: string[] = [];
  const log = { warn: (text: string) => said.push(text) } as unknown as Logger;
  const settings = { system: null, train_on: "all", template_date: "2025-01-02" } as const;
  const set = { label: "rows", files: [path, path], weight: null, limit, columns: {} };
  const sets = [{ ...set, ...templatesOf(settings, modelFolder(t), log)("auto") }];
  return encodeSets(sets, { maxLength: 40, vocabSize: 512 }, () => threads).catch((error: Error) => {
    throw new Error(error.message.replaceAll(path, "rows"));
  });
}

function contents({ rows, sizes }: EncodedSets): unknown {
  const all = Array.from({ length: rows.size }, (_, index) => {
    const { tokens, labels, weights } = rows.row(index);
    // Where no weight of a row is another than 1, it does not matter whether they are written.
    return [[...tokens], [...labels], weights?.some((weight) => weight !== 1) ? [...weights] : null];
  });
  return { all, sizes, statistics: rows.statistics };
}

test("threads, however many, encode what the main thread does", async (t) => {
  const alone = contents(await encoded(t, ROWS, 0));
  for (const threads of [1, 3]) assert.deepEqual(contents(await encoded(t, ROWS, threads)), alone);
  const some = contents(await encoded(t, ROWS, 0, 700));
  assert.deepEqual(contents(await encoded(t, ROWS, 2, 700)), some);
});

test("of several bad rows the first is told, whichever thread has it, and whatever finds it", async (t) => {
  const bad = [
    { input_ids: [99999] },
    { instruction: 3, output: "b" },
    { messages: [{ role: "critic", content: "x" }] },
  ];
  for (const [first, second] of [
    [0, 1],
    [1, 0],
    [2, 0],
  ] as const) {
    const rows: object[] = [...ROWS];
    rows[777] = bad[first]!;
    rows[790] = bad[second]!;
    rows[1400] = bad[0]!;
    const failure = async (threads: number) => encoded(t, rows, threads).then(String, (error: Error) => error.message);
    const alone = await failure(0);
    assert.match(alone, /rows: row 778/);
    assert.equal(await failure(3), alone);
  }
});
