import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI from "openai";
import { writeChainModel } from "../../support/models/chain-model.ts";
import {
  coordinator,
  events,
  outcome,
  readJson,
  startCoordinator,
  temporaryFolder,
} from "../../support/processes/cli.ts";
import { freePort } from "../../support/processes/ports.ts";
import { childrenOf } from "../../support/processes/processes.ts";

/** A run whose replies change with the steps: the model learns to answer with other letters than its own. */
async function setUp(t: { after(fn: () => void): void }) {
  const root = temporaryFolder(t);
  const model = join(root, "model");
  mkdirSync(model);
  await writeChainModel(model);
  const rows = Array.from({ length: 24 }, (_, i) => ({
    messages: [
      { role: "user", content: `say ${i % 5}` },
      { role: "assistant", content: "hg".repeat(1 + (i % 3)) },
    ],
  }));
  writeFileSync(join(root, "rows.jsonl"), rows.map((row) => JSON.stringify(row)).join("\n"));
  writeFileSync(
    join(root, "held-out.jsonl"),
    rows
      .slice(0, 4)
      .map((row) => JSON.stringify(row))
      .join("\n"),
  );
  writeFileSync(join(root, "prompts.txt"), "say 1\nsay 4\n");
  const flags = (output: string, ...more: string[]) => [
    ...["train", "--model", model, "--dataset", join(root, "rows.jsonl"), "--output-dir", join(root, output)],
    ...["--eval-dataset", join(root, "held-out.jsonl"), "--eval-strategy", "steps", "--eval-steps", "8"],
    ...["--workers", "2", "--per-device-train-batch-size", "2", "--num-train-epochs", "2", "--learning-rate", "0.02"],
    ...[
      "--lora-dropout",
      "0.1",
      "--target-modules",
      "q_proj,v_proj,up_proj,down_proj,o_proj",
      "--save-steps",
      "8",
      "--json",
    ],
    ...more,
  ];
  return { root, model, flags };
}

const adapter = (...parts: string[]) => readFileSync(join(...parts, "adapter_model.safetensors"));

test("who asks between steps is answered by the adapter as it is, and the run has the same bits, a worker lost or not", async (t) => {
  const { root, model, flags } = await setUp(t);
  const quiet = await coordinator(flags("quiet"));
  assert.equal(quiet.code, 0, quiet.stderr);

  const port = await freePort();
  const child = startCoordinator(
    flags(
      "asked",
      "--http",
      `127.0.0.1:${port}`,
      "--max-num-seqs",
      "4",
      "--sample-prompts",
      join(root, "prompts.txt"),
      "--max-new-tokens",
      "9",
    ),
  );
  let ended = false;
  const running = outcome(child).finally(() => {
    ended = true;
  });
  const client = new OpenAI({ apiKey: "none", baseURL: `http://127.0.0.1:${port}/v1`, maxRetries: 0 });
  const answers: { step: number; text: string; prompt: string }[] = [];
  const asker = async (own: number) => {
    while (!ended && answers.length < 200) {
      const prompt = `say ${own}`;
      try {
        const reply = await client.chat.completions.create({
          ...{ model: "asked", temperature: 0, max_tokens: 8, messages: [{ role: "user" as const, content: prompt }] },
        });
        const { training_step: step } = reply as unknown as { training_step: number };
        assert.equal(reply.system_fingerprint, `step-${step}`);
        answers.push({ step, text: reply.choices[0]!.message.content!, prompt });
        // A worker is lost on the way: the run goes on from a checkpoint, and so do the answers.
        if (answers.length === 12) process.kill(childrenOf(child.pid!)[0]!, "SIGKILL");
      } catch (error) {
        // Before it is loaded, when it has ended, and for what was under way with the worker.
        if (error instanceof assert.AssertionError) throw error;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  };
  await Promise.all([1, 2, 3, 4].map(asker));
  const result = await running;
  assert.equal(result.code, 0, result.stderr);

  assert.ok(answers.length >= 25, `${answers.length} answers`);
  assert.ok(new Set(answers.map(({ step }) => step)).size > 8);
  assert.deepEqual(adapter(root, "asked"), adapter(root, "quiet"));
  for (const step of [8, 24])
    assert.deepEqual(adapter(root, "asked", `checkpoint-${step}`), adapter(root, "quiet", `checkpoint-${step}`));
  assert.match(result.stderr, /restart 1 of 3/);
  const logs = (run: string) =>
    readJson<{ log_history: Record<string, number>[] }>(root, run, "trainer_state.json").log_history.map(
      ({ step, loss, eval_loss }) => [step, loss, eval_loss],
    );
  assert.deepEqual(logs("asked"), logs("quiet"));
  const notes = events(result.stdout, "note").map(({ text }) => String(text));
  assert.ok(notes.some((text) => /^answered \d requests? after step \d+: \d+ tokens in .* s a request/.test(text)));

  // What was said is what the checkpoint of that step says.
  const saved = answers.find(({ step }) => step > 0 && step % 8 === 0)!;
  const again = await coordinator([
    ...[
      "generate",
      "--model",
      model,
      "--adapter",
      join(root, "asked", `checkpoint-${saved.step}`),
      "--prompt",
      saved.prompt,
    ],
    ...["--max-new-tokens", "8", "--json"],
  ]);
  assert.equal((JSON.parse(again.stdout) as { text: string }).text, saved.text);
  const first = answers.find(({ step }) => step === 0);
  assert.ok(first === undefined || first.text === "ABCDEFGH");
  assert.ok(
    answers.some(({ text }) => text !== "ABCDEFGH"),
    "the replies learn",
  );

  const samples = readFileSync(join(root, "asked", "samples.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as { step: number; prompt: string; text: string });
  assert.deepEqual(
    samples.map(({ step, prompt }) => [step, prompt]),
    [8, 16, 24].flatMap((step) => [
      [step, "say 1"],
      [step, "say 4"],
    ]),
  );
  const shown = events(result.stdout, "samples") as unknown as {
    step: number;
    samples: { prompt: string; reply: string }[];
  }[];
  const told = new Map(shown.map((one) => [one.step, one.samples]));
  assert.deepEqual(
    [...told].flatMap(([step, own]) => own.map(({ prompt, reply }) => ({ step, prompt, text: reply }))),
    samples.map(({ step, prompt, text }) => ({ step, prompt, text })),
  );
});

test("several adapters in training: each is asked by its name, one that has ended no more once the run has begun anew", async (t) => {
  const { root, model, flags } = await setUp(t);
  const adapters = join(root, "adapters.yaml");
  const prompts = ["--sample-prompts", join(root, "prompts.txt"), "--max-new-tokens", "9", "--max-num-seqs", "4"];
  // Steps enough for all that is asked between them.
  prompts.push("--num-train-epochs", "4");
  writeFileSync(adapters, "learns: {}\nshort: {max_steps: 8, lora_r: 4}\nsleeps: {learning_rate: 1.0e-9}\n");
  const quiet = await coordinator(flags("quiet", "--adapters", adapters, ...prompts));
  assert.equal(quiet.code, 0, quiet.stderr);

  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const child = startCoordinator(flags("asked", "--adapters", adapters, ...prompts, "--http", `127.0.0.1:${port}`));
  const running = outcome(child);
  const client = new OpenAI({ apiKey: "none", baseURL: `${url}/v1`, maxRetries: 0 });
  // Until the address is open.
  while (child.exitCode === null && !(await fetch(`${url}/health`).catch(() => null))?.ok) await sleep(20);
  const ask = async (name: string) => {
    const asked = {
      model: name,
      temperature: 0,
      max_tokens: 8,
      messages: [{ role: "user" as const, content: "say 1" }],
    };
    const reply = await client.chat.completions.create(asked);
    return {
      step: (reply as unknown as { training_step: number }).training_step,
      text: reply.choices[0]!.message.content!,
    };
  };
  const said: { name: string; step: number; text: string }[] = [];
  const untilStep = async (name: string, step: number) => {
    for (;;) {
      // What is under way with a lost worker fails.
      const reply = await ask(name).catch((error: unknown) => {
        if (child.exitCode !== null) throw error;
        return null;
      });
      if (reply === null) continue;
      said.push({ name, ...reply });
      if (reply.step >= step) return;
    }
  };
  await Promise.all([untilStep("learns", 12), untilStep("sleeps", 12), untilStep("short", 8)]);
  assert.deepEqual(
    (await client.models.list()).data.map(({ id }) => id),
    ["learns", "short", "sleeps"],
  );
  const page = (await (await fetch(`${url}/page/runs`)).json()) as { runs: { id: string; live: boolean }[] };
  assert.deepEqual(
    page.runs.map(({ id }) => id),
    ["learns", "short", "sleeps"],
  );
  const metrics = await (await fetch(`${url}/metrics`)).text();
  assert.match(metrics, /^pipelora_train_done\{adapter="short"\} 1$/m);
  assert.match(metrics, /^pipelora_train_step\{adapter="learns"\} \d+$/m);
  process.kill(childrenOf(child.pid!)[0]!, "SIGKILL");
  let left = await client.models.list();
  while (left.data.length === 3) {
    await ask("learns").catch(() => {});
    left = await client.models.list();
  }
  assert.deepEqual(
    left.data.map(({ id }) => id),
    ["learns", "sleeps"],
  );
  await assert.rejects(ask("short"), { status: 404 });
  await Promise.all([untilStep("learns", 16), untilStep("sleeps", 16)]);
  const result = await running;
  assert.equal(result.code, 0, result.stderr);

  for (const name of ["learns", "short", "sleeps"]) {
    assert.deepEqual(adapter(root, "asked", name), adapter(root, "quiet", name));
    assert.deepEqual(
      readFileSync(join(root, "asked", name, "samples.jsonl")),
      readFileSync(join(root, "quiet", name, "samples.jsonl")),
    );
  }
  assert.ok(said.filter(({ name }) => name === "sleeps").every(({ text }) => text === "ABCDEFGH"));
  for (const name of ["learns", "short"]) {
    const of = said.find((one) => one.name === name && one.step === 8);
    if (of === undefined) continue;
    const flagsOf = [
      "--adapter",
      join(root, "quiet", name, "checkpoint-8"),
      "--prompt",
      "say 1",
      "--max-new-tokens",
      "8",
    ];
    const again = await coordinator(["generate", "--model", model, ...flagsOf, "--json"]);
    assert.equal((JSON.parse(again.stdout) as { text: string }).text, of.text, name);
  }
});
