import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { type Job, runJobs } from "../../../scripts/jobs.mjs";
import { testJobs } from "../../../scripts/test-files.mjs";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";

const quiet = { show: () => {} };
const script = (code: string) => [process.execPath, "-e", code];
const job = (name: string, code: string, more: Partial<Job> = {}): Job => ({ name, command: script(code), ...more });

test("a job fails by its status, by a signal, by its deadline, by a program that is not there, by its output", async () => {
  const said: string[] = [];
  const ended = await runJobs(
    [
      job("well", "console.log('out'); console.error('err')"),
      job("status", "process.exit(3)"),
      job("signal", "process.kill(process.pid, 'SIGKILL')"),
      job("for ever", "setInterval(() => {}, 1000)"),
      { name: "no program", command: ["/nowhere/program"] },
      job("output", "console.log('nothing ran')", { check: (output) => (output.includes("nothing") ? "no" : null) }),
    ],
    6,
    { deadlineMs: 5_000, show: (text) => said.push(text) },
  );
  const wrong = Object.fromEntries(ended.map((one) => [one.name, one.wrong]));
  assert.deepEqual(
    { ...wrong, "no program": wrong["no program"]?.slice(0, 36) },
    {
      well: null,
      status: "ended with 3",
      signal: "ended with SIGKILL",
      "for ever": "killed after 5 s",
      "no program": "/nowhere/program could not be starte",
      output: "no",
    },
  );
  const shown = said.find((text) => text.startsWith("\n== well"))!;
  assert.ok(shown.includes("out\n") && shown.includes("err\n"));
});

test("what a job started is gone with it after its deadline", async () => {
  const grandchild = "setInterval(() => {}, 1000)";
  const parent = `const { pid } = require("node:child_process").spawn(process.execPath, ["-e", ${JSON.stringify(grandchild)}], { stdio: "ignore" }); console.log(pid); setInterval(() => {}, 1000)`;
  const [one] = await runJobs([job("family", parent)], 1, { ...quiet, deadlineMs: 2_000 });
  const pid = Number(one!.output.trim());
  assert.ok(pid > 0);
  for (let tries = 0; tries < 100 && isRunning(pid); tries++) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(isRunning(pid), false);
});

test("every job runs once or is named as not run; needs come before, lanes and slots hold", async (t) => {
  const root = mkdtempSync(join(PACKAGE_ROOT, "build", "jobs-"));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  const drawn = fc.array(
    fc.record({
      fails: fc.integer({ min: 0, max: 4 }).map((number) => number === 0),
      lane: fc.option(fc.constantFrom("a", "b")),
      beside: fc.boolean(),
      before: fc.option(fc.nat(7)),
    }),
    { minLength: 1, maxLength: 8 },
  );
  let run = 0;
  await fc.assert(
    fc.asyncProperty(drawn, fc.integer({ min: 1, max: 3 }), async (all, slots) => {
      const log = join(root, `log-${run++}`);
      writeFileSync(log, "");
      const jobs = all.map(
        ({ fails, lane, beside, before }, index): Job => ({
          name: String(index),
          command: ["sh", "-c", `echo "+${index}" >> ${log}; echo "-${index}" >> ${log}; exit ${fails ? 1 : 0}`],
          ...(lane === null ? {} : { lane }),
          beside,
          ...(before === null || before >= index ? {} : { needs: [String(before)] }),
        }),
      );
      const ended = await runJobs(jobs, slots, quiet);
      assert.deepEqual(ended.map(({ name }) => name).sort(), jobs.map(({ name }) => name).sort());
      const lines = readFileSync(log, "utf8").trim().split("\n").filter(Boolean);
      const running = new Set<string>();
      const succeeded = new Set<string>();
      const ran = new Set<string>();
      for (const line of lines) {
        const name = line.slice(1);
        const { lane, needs, beside } = jobs[Number(name)]!;
        if (line[0] === "-") {
          running.delete(name);
          if (!all[Number(name)]!.fails) succeeded.add(name);
          continue;
        }
        assert.ok(!ran.has(name), `${name} ran twice`);
        ran.add(name);
        for (const need of needs ?? []) assert.ok(succeeded.has(need), `${name} before ${need}`);
        const others = [...running].map((other) => jobs[Number(other)]!);
        if (lane !== undefined) assert.ok(!others.some((other) => other.lane === lane), `lane ${lane}`);
        if (beside !== true) assert.ok(others.filter((other) => other.beside !== true).length < slots);
        running.add(name);
      }
      for (const { name, wrong } of ended) {
        const { needs } = jobs[Number(name)]!;
        const missing = (needs ?? []).some((need) => !succeeded.has(need));
        assert.equal(ran.has(name), !missing, name);
        assert.equal(wrong === null, succeeded.has(name), name);
      }
    }),
    { numRuns: 25 },
  );
});

test("a job that waits for one that does not exist is an error, not a wait", async () => {
  await assert.rejects(runJobs([job("a", "", { needs: ["b"] })], 1, quiet), /a waits for jobs that do not exist: b/);
});

test("a failing test, a file that does not load and a file without tests are failures; all files of a folder are run", async (t) => {
  const folder = mkdtempSync(join(PACKAGE_ROOT, "build", "files-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  mkdirSync(join(folder, "deep", "er"), { recursive: true });
  const head = 'import { test } from "node:test";\n';
  const files: Record<string, string> = {
    "good.test.ts": `${head}test("x", () => {});`,
    "deep/er/bad.test.ts": `${head}test("x", () => { throw new Error("no") });`,
    "deep/never.test.ts": `${head}test("x", () => new Promise(() => {}));`,
    "broken.test.ts": `${head}import "./not-there.ts"; test("x", () => {});`,
    "empty.test.ts": "export {};",
    "left.test.ts": `${head}test("x", () => {}); process.exit(0);`,
    "other.ts": "process.exit(9);",
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  const ended = await runJobs(testJobs([relative(PACKAGE_ROOT, folder)]), 3, quiet);
  const wrong = Object.fromEntries(ended.map((one) => [relative(folder, join(PACKAGE_ROOT, one.name)), one.wrong]));
  assert.deepEqual(
    Object.keys(wrong).sort(),
    Object.keys(files)
      .filter((name) => name !== "other.ts")
      .sort(),
  );
  const { "good.test.ts": good, "empty.test.ts": empty, ...bad } = wrong;
  assert.equal(good, null);
  assert.equal(empty, "ran no test");
  for (const [name, how] of Object.entries(bad)) assert.notEqual(how, null, name);
});

function isRunning(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
