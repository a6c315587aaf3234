// The test files of a folder as jobs, in an order that leaves no slow file for the end.
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fail, root } from "./lib.mjs";

/** Files that take longest, the slowest first: they start first, so that the short ones fill the end. */
const SLOWEST = [
  "training/golden-training.test.ts",
  "training/many-adapters.test.ts",
  "faults/random-faults.test.ts",
  "training/quantized.test.ts",
  "training/regularisation.test.ts",
  "training/experts-layouts.test.ts",
  "faults/node-faults.test.ts",
  "replies/live-replies.test.ts",
  "faults/stalls.test.ts",
  "training/resume.test.ts",
  "training/best-model.test.ts",
  "faults/attacks.test.ts",
  "training/adapter-kinds.test.ts",
  "faults/damage.test.ts",
  "training/batches.test.ts",
  "commands/hub.test.ts",
  "training/experts-reference.test.ts",
  "training/replicas.test.ts",
  "faults/faults.test.ts",
  "faults/elastic.test.ts",
  "cluster/nodes.test.ts",
  "faults/bombs.test.ts",
].map((name) => `tests/integration/${name}`);

/** A job for each *.test.ts below these folders. node:test runs each file's tests in a process of its own. */
export function testJobs(folders, needs = []) {
  const files = folders.flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true })
      .filter((name) => name.endsWith(".test.ts"))
      .map((name) => join(folder, name))
      .sort(),
  );
  if (files.length === 0) fail(`no tests in ${folders.join(", ")}`);
  for (const file of SLOWEST)
    if (!existsSync(join(root, file))) fail(`scripts/test-files.mjs names ${file}, which is not there`);
  const place = (file) => (SLOWEST.includes(file) ? SLOWEST.indexOf(file) : SLOWEST.length);
  return files
    .sort((a, b) => place(a) - place(b))
    .map((file) => ({
      name: file,
      command: [process.execPath, "--import", "tsx", "--test-reporter=spec", file],
      needs,
      check: (output) => (countOf(output, "tests") > 0 ? null : "ran no test"),
      // One browser at a time.
      ...(file.startsWith("tests/browser/") ? { lane: "browser" } : {}),
    }));
}

/** How many tests all files ran, and how many of these said why they skip. */
export function countTests(ended) {
  const sum = (what) => ended.reduce((total, { output }) => total + countOf(output, what), 0);
  return `${ended.length} jobs, ${sum("tests")} tests: ${sum("pass")} passed, ${sum("fail")} failed, ${sum("skipped")} skipped`;
}

/** A number of node:test's summary. */
function countOf(output, what) {
  return Number(new RegExp(`^ℹ ${what} (\\d+)$`, "m").exec(output)?.[1] ?? 0);
}
