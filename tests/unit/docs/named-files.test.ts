import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";

const FOLDERS = ["src", "native", "docs", "tests", "bench", "scripts", "deploy", "web"];

/** Files of other projects, and patterns with a word to put in. */
const ELSEWHERE = new Set(["docs/modelfile.md", "docs/gguf.md", "src/llama-vocab.cpp"]);

const files = [
  "README.md",
  "CONTRIBUTING.md",
  "SECURITY.md",
  "CHANGELOG.md",
  ...FOLDERS.flatMap((folder) =>
    readdirSync(join(PACKAGE_ROOT, folder), { recursive: true, encoding: "utf8" }).map((name) => `${folder}/${name}`),
  ),
].filter((name) => /\.(md|tsx?|mjs|cpp|h|cu|cuh|inl|sh)$/.test(name) && !/generated|fixtures|node_modules/.test(name));

/** Where names may start: the repository, native/ (as includes do), or the file's own folder. */
function isThere(name: string, from: string): boolean {
  const starts = ["", "native", "native/include", dirname(from)];
  return starts.some((start) => existsSync(join(PACKAGE_ROOT, start, name)));
}

test("files that documents and comments name by their paths are there", () => {
  const missing = files.flatMap((file) => {
    const lines = readFileSync(join(PACKAGE_ROOT, file), "utf8")
      .split("\n")
      .filter((line) => file.endsWith(".md") || /^\s*(\/?\*|\/\/|#(?!include))/.test(line));
    const named = lines.flatMap((line) =>
      [
        ...line.matchAll(
          /(?<![\w@/.$}-])((?:src|tests|native|docs|web|scripts|deploy|bench|ops|pipelora)\/[\w./-]*\w\.\w+)/g,
        ),
      ].map(([, name]) => name!),
    );
    return named
      .filter((name) => !isThere(name, file) && !ELSEWHERE.has(name) && !name.includes("NAME"))
      .map((name) => `${file}: ${name}`);
  });
  assert.deepEqual(missing, []);
});
