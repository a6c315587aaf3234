// Runs every *.test.ts below a folder with node:test (Node 20 takes no patterns).
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { fail, root, run } from "./lib.mjs";

const [folder, concurrency] = process.argv.slice(2);
const files = readdirSync(join(root, folder), { recursive: true })
  .filter((name) => name.endsWith(".test.ts"))
  .map((name) => join(folder, name))
  .sort();
if (files.length === 0) fail(`no tests in ${folder}`);
run(process.execPath, [
  "--import",
  "tsx",
  "--test",
  `--test-concurrency=${concurrency}`,
  "--test-reporter=spec",
  ...files,
]);
