// The test files of a folder as jobs, in an order that leaves no slow file for the end.
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fail, root } from "./lib.mjs";

/** Files that take longest, the slowest first: they start first, so that the short ones fill the end. */
const SLOWEST = [
  "integration/training/golden-training.test.ts",
  "integration/training/many-adapters.test.ts",
  "integration/faults/random-faults.test.ts",
  "integration/training/quantized.test.ts",
  "integration/training/regularisation.test.ts",
  "integration/training/experts-layouts.test.ts",
  "integration/faults/node-faults.test.ts",
  "unit/formats/real-tokenizers.test.ts",
  "integration/replies/live-replies.test.ts",
  "integration/faults/stalls.test.ts",
  "integration/training/resume.test.ts",
  "integration/training/best-model.test.ts",
  "integration/faults/attacks.test.ts",
  "unit/fuzz/fuzz.test.ts",
  "integration/training/adapter-kinds.test.ts",
  "integration/faults/damage.test.ts",
  "integration/training/batches.test.ts",
  "integration/commands/hub.test.ts",
  "unit/plan/engine-memory.test.ts",
  "unit/data/encode-threads.test.ts",
  "integration/training/experts-reference.test.ts",
  "integration/training/replicas.test.ts",
  "integration/faults/faults.test.ts",
  "integration/faults/elastic.test.ts",
  "integration/cluster/nodes.test.ts",
  "integration/faults/bombs.test.ts",
].map((name) => join("tests", name));

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
