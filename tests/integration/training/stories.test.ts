import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { coordinator, events, readJson, temporaryFolder } from "../../support/processes/cli.ts";
import { shared } from "../../unit/shared-data.ts";

const model = shared("data/stories260k");
const TEXTS = [
  "The little fox had a red hat. The fox lost the hat in the wind.",
  "A small boat went over the lake. The boat came home at night.",
  "Mia had a green ball. She gave the ball to her dog, and the dog was happy.",
];

test("a trained Llama over two workers tells its story", { skip: model === null }, async () => {
  const { greedy_ids_from_bos: story } = readJson<{ greedy_ids_from_bos: number[] }>(model!, "greedy.json");
  const result = await coordinator([
    ...["generate", "--model", model!, "--prompt-ids", "[1]", "--max-new-tokens", String(story.length - 1)],
    ...["--workers", "2", "--json", "--log-level", "warn"],
  ]);
  assert.equal(result.code, 0, result.stderr);
  const { output_ids } = JSON.parse(result.stdout) as { output_ids: number[] };
  assert.deepEqual([1, ...output_ids], story);
});

test("texts are tokenized as they are, packed or under another column's name", { skip: model === null }, async (t) => {
  const root = temporaryFolder(t);
  const file = (name: string, content: string | Buffer) => {
    writeFileSync(join(root, name), content);
    return join(root, name);
  };
  const tokenized = async (input: string, ...more: string[]) => {
    const result = await coordinator(["tokenize", "--model", model!, "--input", input, ...more]);
    assert.equal(result.code, 0, result.stderr);
    return result.stdout;
  };
  const lines = TEXTS.map((text) => `${JSON.stringify({ text })}\n`).join("");
  const plain = await tokenized(file("a.jsonl", lines));
  assert.ok(!plain.includes("labels"));
  assert.equal(await tokenized(file("a.jsonl.gz", gzipSync(lines))), plain);
  assert.equal(await tokenized(file("a.json", JSON.stringify(TEXTS.map((text) => ({ text }))))), plain);
  assert.equal(
    await tokenized(file("b.jsonl", lines.replaceAll('"text"', '"body"')), "--columns", '{"text":"body"}'),
    plain,
  );
  const mixed = file("c.jsonl", `${lines}{"instruction": "a", "output": "b"}\n`);
  const refused = await coordinator(["tokenize", "--model", model!, "--input", mixed]);
  assert.match(refused.stderr, /PL_DATASET_INVALID.*row 4 has no "text"/);
});

test("LoRA on a few sentences lowers their loss, held out sentences are evaluated", {
  skip: model === null,
}, async (t) => {
  const root = temporaryFolder(t);
  const texts = join(root, "texts.jsonl");
  writeFileSync(texts, TEXTS.map((text) => `${JSON.stringify({ text })}\n`).join(""));
  const tokenized = await coordinator(["tokenize", "--model", model!, "--input", texts]);
  const rows = join(root, "rows.jsonl");
  writeFileSync(rows, tokenized.stdout.replaceAll('"ids"', '"input_ids"'));
  const result = await coordinator([
    ...["--model", model!, "--dataset", rows, "--eval-dataset", rows, "--eval-strategy", "epoch", "--workers", "2"],
    ...["--output-dir", join(root, "out"), "--num-train-epochs", "20", "--learning-rate", "5e-3"],
    ...["--logging-steps", "5", "--json", "--log-level", "warn"],
  ]);
  assert.equal(result.code, 0, result.stderr);
  const logs = events(result.stdout, "log") as Record<string, number>[];
  const losses = logs.filter((entry) => "loss" in entry).map((entry) => entry["loss"]!);
  assert.ok(losses.at(-1)! < losses[0]! / 4, JSON.stringify(losses));
  const evaluated = logs.filter((entry) => "eval_loss" in entry).map((entry) => entry["eval_loss"]!);
  assert.equal(evaluated.length, 20);
  assert.ok(evaluated.at(-1)! < evaluated[0]! / 4, JSON.stringify(evaluated));
});
