import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import OpenAI, { APIError } from "openai";
import { digitsAfter, writeChainModel } from "../../support/models/chain-model.ts";
import { goldenRun } from "../../support/models/golden.ts";
import { lastLogits, wholeModel } from "../../support/models/one-engine.ts";
import { coordinator, outcome, startCoordinator, temporaryFolder } from "../../support/processes/cli.ts";
import { childrenOf } from "../../support/processes/processes.ts";
import { startServer } from "../../support/processes/server.ts";

const lines = (path: string) =>
  readFileSync(path, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);

/** Greedy tokens of one prompt, from the whole model in one engine, all of it anew for every token. */
async function greedyAlone(model: string, prompt: readonly number[], count: number): Promise<number[]> {
  const engine = await wholeModel(model, null);
  const ids = [...prompt];
  for (let i = 0; i < count; i++) {
    const logits = await lastLogits(engine, ids);
    ids.push(logits.indexOf(logits.reduce((most, value) => Math.max(most, value))));
  }
  await engine.close();
  return ids.slice(prompt.length);
}

for (const name of ["head-dim-96", "qwen3-next"]) {
  test(`${name}: a file of prompts over two workers, the tokens that each gives alone`, async (t) => {
    const root = temporaryFolder(t);
    const model = join(goldenRun(name).folder, "model");
    const prompts = [1, 2, 40, 5, 17, 3, 1, 29].map((length, row) =>
      Array.from({ length }, (_, place) => (row * 31 + place * 7 + 3) % 150),
    );
    const input = join(root, "prompts.jsonl");
    const output = join(root, "out", "answers.jsonl");
    writeFileSync(input, prompts.map((prompt_ids, id) => JSON.stringify({ prompt_ids, id: `row ${id}` })).join("\n"));
    const result = await coordinator([
      ...["generate", "--model", model, "--input", input, "--output", output, "--workers", "2"],
      ...["--max-num-seqs", "3", "--max-num-batched-tokens", "11", "--max-new-tokens", "9", "--stop-ids", "[]"],
    ]);
    assert.equal(result.code, 0, result.stderr);
    assert.equal(existsSync(`${output}.part`), false);
    const answers = lines(output);
    for (const [index, prompt] of prompts.entries()) {
      const expected = await greedyAlone(model, prompt, 9);
      assert.deepEqual(answers[index], {
        ...{ index, prompt_ids: prompt, id: `row ${index}`, output_ids: expected, text: null, finish_reason: "length" },
      });
    }
  });
}

test("a killed run goes on where it stopped, and answers of other settings are not mixed in", async (t) => {
  const root = temporaryFolder(t);
  await writeChainModel(root);
  const count = 24;
  const input = join(root, "prompts.jsonl");
  const output = join(root, "answers.jsonl");
  const rows = Array.from({ length: count }, (_, i) => ({ prompt: String(i % 10) }));
  writeFileSync(input, `${rows.map((row) => JSON.stringify(row)).join("\n\n")}\n`);
  const args = ["generate", "--model", root, "--input", input, "--output", output, "--raw", "--max-num-seqs", "2"];
  const child = startCoordinator([...args, "--max-new-tokens", "40"]);
  const ended = outcome(child);
  const answered = () =>
    existsSync(`${output}.part`) ? readFileSync(`${output}.part`, "utf8").split("\n").length - 2 : 0;
  while (answered() < 4) await new Promise((resolve) => setTimeout(resolve, 10));
  child.kill("SIGKILL");
  await ended;
  const kept = answered();
  assert.ok(kept < count && !existsSync(output));
  // As a kill in the middle of a line leaves it.
  writeFileSync(`${output}.part`, `${readFileSync(`${output}.part`, "utf8")}{"index":23,"text":"12`);

  const other = await coordinator([...args, "--max-new-tokens", "41"]);
  assert.match(other.stderr, /PL_RESUME_INVALID/);
  const again = await coordinator([...args, "--max-new-tokens", "40"]);
  assert.equal(again.code, 0, again.stderr);
  assert.match(again.stderr, new RegExp(`${kept} of ${count} prompts are answered already`));
  for (const [index, answer] of lines(output).entries()) {
    const prompt = String(index % 10);
    const { output_ids, ...rest } = answer;
    assert.deepEqual(rest, { index, prompt, text: digitsAfter(Number(prompt), 40), finish_reason: "length" });
    assert.equal((output_ids as number[]).length, 40);
  }
  const third = await coordinator([...args, "--max-new-tokens", "40"]);
  assert.equal(third.code, 1);
  assert.match(third.stderr, /PL_OUTPUT_UNWRITABLE.*is there already/);
});

test("a lost worker costs a pause: replies under way go on where they were, streams too", async (t) => {
  const root = temporaryFolder(t);
  await writeChainModel(root);
  const server = await startServer([
    "--model",
    root,
    "--workers",
    "2",
    "--served-model-name",
    "m",
    "--max-num-seqs",
    "5",
  ]);
  const client = new OpenAI({ apiKey: "none", baseURL: `${server.url}/v1`, maxRetries: 0 });
  try {
    const count = 250;
    let seen = 0;
    const asked = [1, 2, 3, 4].map(async (digit) => {
      const stream = await client.completions.create({
        ...{ model: "m", prompt: String(digit), temperature: 0, max_tokens: count, stream: true },
      });
      let text = "";
      for await (const { choices } of stream) {
        text += choices[0]!.text;
        seen++;
      }
      assert.equal(text, digitsAfter(digit, count));
    });
    while (seen < 120) await new Promise((resolve) => setTimeout(resolve, 5));
    process.kill(childrenOf(server.pid)[1]!, "SIGKILL");
    await Promise.all(asked);
    assert.match(server.log(), /loading the model anew/);
    const health = await fetch(`${server.url}/health`);
    assert.equal(health.status, 200);
  } finally {
    assert.equal(await server.stop("SIGINT"), 0, server.log());
  }
});

test("late requests and a server that can't go on end with clear errors, streams too", async (t) => {
  const root = temporaryFolder(t);
  await writeChainModel(root);
  const server = await startServer([
    ...["--model", root, "--workers", "2", "--served-model-name", "m", "--request-timeout", "1", "--max-restarts", "0"],
  ]);
  const client = new OpenAI({ apiKey: "none", baseURL: `${server.url}/v1`, maxRetries: 0 });
  const long = { model: "m", prompt: "1", temperature: 0, max_tokens: 2000 };
  const failure = (work: Promise<unknown>) =>
    work.then(
      () => assert.fail("it was answered"),
      (error: unknown) => {
        assert.ok(error instanceof APIError, String(error));
        return [error.status, error.code];
      },
    );
  const streamed = async () => {
    let text = "";
    try {
      for await (const { choices } of await client.completions.create({ ...long, stream: true }))
        text += choices[0]!.text;
    } finally {
      assert.ok(text.length > 0 && digitsAfter(1, 2000).startsWith(text));
    }
  };
  assert.deepEqual(await failure(client.completions.create(long)), [504, "timeout"]);
  // Its status was 200 when it began.
  assert.deepEqual(await failure(streamed()), [undefined, "timeout"]);

  const lost = [failure(client.completions.create(long)), failure(streamed())];
  setTimeout(() => process.kill(childrenOf(server.pid)[0]!, "SIGKILL"), 300);
  assert.deepEqual(await Promise.all(lost), [
    [503, "worker_lost"],
    [undefined, "worker_lost"],
  ]);
  assert.equal(await server.ended, 75);
  assert.match(server.log(), /PL_WORKER_LOST/);
});

test("a server that is told to stop finishes what is under way", async (t) => {
  const root = temporaryFolder(t);
  await writeChainModel(root);
  const server = await startServer(["--model", root, "--workers", "1", "--served-model-name", "m"]);
  const client = new OpenAI({ apiKey: "none", baseURL: `${server.url}/v1`, maxRetries: 0 });
  const stream = await client.completions.create({
    ...{ model: "m", prompt: "5", temperature: 0, max_tokens: 300, stream: true },
  });
  let text = "";
  let stopped: Promise<number | null> | null = null;
  for await (const { choices } of stream) {
    text += choices[0]!.text;
    stopped ??= server.stop();
  }
  assert.equal(text, digitsAfter(5, 300));
  assert.equal(await stopped, 0);
  await assert.rejects(fetch(`${server.url}/health`));
});
