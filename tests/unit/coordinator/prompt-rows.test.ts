import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type PromptFile, promptRows } from "../../../src/coordinator/generation/prompt-rows.ts";
import type { Language } from "../../../src/coordinator/generation/sample.ts";
import { rowTemplate } from "../../../src/data/templates.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { writeChainModel } from "../../support/models/chain-model.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

async function setUp(t: { after(fn: () => void): void }) {
  const dir = temporaryFolder(t);
  await writeChainModel(dir, 1);
  const tokenizer = await loadTokenizer(dir);
  const language: Language = { tokenizer, template: rowTemplate(tokenizer, { name: "auto", system: null }) };
  const path = join(dir, "prompts.jsonl");
  const read = async (text: string, of: Language = language, plain: PromptFile["plain"] = false) => {
    writeFileSync(path, text);
    const rows = [];
    for await (const row of promptRows({ path, plain }, of)) rows.push(row);
    return rows;
  };
  return { tokenizer, language, read };
}

test("prompts come as text, as messages with tools, or as ids, with whatever else the row has", async (t) => {
  const { tokenizer, language, read } = await setUp(t);
  const text = [
    '\ufeff{"prompt": "ab", "id": 7}',
    "",
    '{"messages": [{"role": "user", "content": "c"}], "tools": [{"type": "function"}]}\r',
    '{"prompt_ids": [5, 0]}',
  ].join("\n");
  const rows = await read(text);
  assert.deepEqual(
    rows.map(({ index, ids }) => [index, tokenizer.decode(ids)]),
    [
      [0, "<|user|>ab<|assistant|>"],
      [1, '<|user|>c[{"type": "function"}]<|told|>'],
      [2, "\u0005\u0000"],
    ],
  );
  assert.deepEqual(rows[0]!.row, { prompt: "ab", id: 7 });
  const raw = { ...language, template: null };
  assert.deepEqual((await read('{"prompt": "ab"}', raw))[0]!.ids, [97, 98]);
  assert.deepEqual(
    (await read('{"a"\nb', raw, true)).map(({ ids }) => ids),
    [[...'{"a"'].map((c) => c.charCodeAt(0)), [98]],
  );
});

test("what is no prompt is refused, naming its line", async (t) => {
  const { language, read } = await setUp(t);
  const refused = async (text: string, message: RegExp, of?: Language) =>
    assert.rejects(read(text, of), (error: Error & { code: string }) => {
      assert.match(error.message, message);
      return /PL_DATASET_INVALID|PL_TOKENIZER_INVALID/.test(error.code);
    });
  await refused("{", /line 1 is no JSON/);
  await refused('{"prompt":"a"}\n{"text":"b"}', /line 2 must have one of prompt, messages, prompt_ids/);
  await refused('{"prompt":"a","prompt_ids":[1]}', /line 1 must have one of/);
  await refused("[1]", /line 1 must have one of/);
  await refused('{"prompt":5}', /line 1: "prompt" must be text, got 5/);
  for (const ids of ["[]", "[1.5]", "[-1]", '["a"]', "5"]) {
    await refused(`{"prompt_ids":${ids}}`, /line 1: "prompt_ids" must be a list of ids/);
  }
  await refused('{"messages":[{"role":"alien","content":"x"}]}', /line 1, message 1: role must be/);
  await refused("\n \n", /holds no prompt/);
  await refused('{"prompt":""}', /line 1: the prompt has no token/, { ...language, template: null });
  await refused('{"messages":[{"role":"user","content":"x"}]}', /--raw leaves out/, { ...language, template: null });
  await refused('\n{"prompt":"a"}', /line 2 holds text, and the model has no tokenizer/, {
    tokenizer: null,
    template: null,
  });
  await assert.rejects(async () => {
    for await (const _ of promptRows({ path: "/nowhere/prompts.jsonl", plain: false }, language));
  }, /PL_DATASET_INVALID|can't be read/);
});
