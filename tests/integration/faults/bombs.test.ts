import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { coordinator, outcome, startCoordinator, temporaryFolder } from "../../support/processes/cli.ts";
import { processesMentioning } from "../../support/processes/processes.ts";
import { fixture } from "../../unit/shared-data.ts";

const WAITS = 10_000;

interface Bomb {
  readonly name: string;
  readonly template?: string;
  readonly pattern?: string;
  /** A file of fixtures in place of rows. */
  readonly file?: string;
  readonly text: string;
  readonly rows: number;
}

const PLAIN = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}";
const BOMBS: readonly Bomb[] = [
  {
    name: "a template's endless loop",
    template: `{% for i in range(10**9) %}{% endfor %}${PLAIN}`,
    text: "a",
    rows: 1,
  },
  {
    name: "a template that is slow, but not too slow, on each of many rows",
    template: `{% for i in range(700) %}{% for j in range(60) %}{% set k = i * j %}{% endfor %}{% endfor %}${PLAIN}`,
    text: "a",
    rows: 3000,
  },
  { name: "a tokenizer's pattern without end", pattern: "(a+)+$", text: `${"a".repeat(40)}!`, rows: 1 },
  { name: "a pattern that is slow on each of many rows", pattern: "(a+)+$", text: `${"a".repeat(20)}!`, rows: 20_000 },
  { name: "a Parquet file of some hundred bytes", file: "data/bomb.parquet", text: "", rows: 0 },
];

const root = mkdtempSync(join(tmpdir(), "pipelora-bombs-"));
const whole = join(root, "model");

before(async () => {
  const config = JSON.parse(readFileSync(fixture("goldens/qwen2-gqa-tied/model/config.json"), "utf8")) as object;
  // As many tokens as the tokenizer has.
  writeFileSync(join(root, "config.json"), JSON.stringify({ ...config, vocab_size: 512 }));
  const made = await coordinator(["init-model", "--config", join(root, "config.json"), "--output-dir", whole]);
  assert.equal(made.code, 0, made.stderr);
});
after(() => rmSync(root, { recursive: true, force: true }));

function inputs(t: TestContext, { template, pattern, file, text, rows }: Bomb): { root: string; flags: string[] } {
  const root = temporaryFolder(t);
  const model = join(root, "model");
  cpSync(whole, model, { recursive: true });
  const json = JSON.parse(readFileSync(fixture("tokens/tokenizer.json"), "utf8")) as Record<string, unknown>;
  const cut = { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
  writeFileSync(
    join(model, "tokenizer.json"),
    JSON.stringify(pattern === undefined ? json : { ...json, pre_tokenizer: cut }),
  );
  writeFileSync(join(model, "tokenizer_config.json"), JSON.stringify({ chat_template: template ?? PLAIN }));
  const data = file === undefined ? join(root, "rows.jsonl") : fixture(file);
  const row = JSON.stringify({ instruction: text, output: text });
  if (file === undefined) writeFileSync(data, `${row}\n`.repeat(rows));
  return { root, flags: ["--model", model, "--dataset", data, "--output-dir", join(root, "out"), "--workers", "1"] };
}

/** What it ends with, and how long after a signal that comes `after` milliseconds from its start. */
async function askedToEnd(flags: readonly string[], signal: NodeJS.Signals, after: number) {
  const child = startCoordinator(flags);
  const done = outcome(child);
  await Promise.race([delay(after), done]);
  const asked = performance.now();
  child.kill(signal);
  const result = await Promise.race([done, delay(WAITS, null)]);
  if (result === null) child.kill("SIGKILL");
  assert.ok(result !== null, `it lives ${WAITS / 1000} s after ${signal}`);
  return { ...result, took: performance.now() - asked };
}

for (const bomb of BOMBS) {
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    test(`${bomb.name}: ${signal} ends the process in time`, async (t) => {
      const { root, flags } = inputs(t, bomb);
      // Until it takes signals into its own hands the system ends it: then it is asked later.
      let result: Awaited<ReturnType<typeof askedToEnd>>;
      let after = 1500;
      do {
        result = await askedToEnd(flags, signal, after);
        after *= 2;
      } while (result.code === null && after < 20_000);
      t.diagnostic(`${Math.round(result.took)} ms after the signal, code ${result.code}`);
      assert.notEqual(result.code, 0);
      assert.match(result.stderr, /PL_[A-Z_]+/);
      assert.doesNotMatch(result.stderr, /PL_INTERNAL|\n {4}at /);
      assert.deepEqual(processesMentioning(root), []);
    });
  }
}
