import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";

const page = readFileSync(join(PACKAGE_ROOT, "docs", "reference", "environment.md"), "utf8");
const listed = new Set([...page.matchAll(/`([A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)+)`/g)].map(([, name]) => name!));

/** Set by whatever runs programs, and read as everywhere: PATH, HOME. */
const EVERYWHERE = new Set(["PATH", "HOME", "LD_LIBRARY_PATH", "CI"]);
/** Read by the libraries that this program uses. */
const LIBRARIES = new Set(["http_proxy", "https_proxy", "all_proxy", "no_proxy", "ONEDNN_MAX_CPU_ISA"]);

/** The variables that a source file reads, by the forms in which this repository reads them. */
function readBy(text: string): string[] {
  const constants = new Map(
    [...text.matchAll(/const (\w+) = "([A-Z][A-Z0-9_]+)";/g)].map(([, name, value]) => [name!, value!]),
  );
  const forms = [
    /process\.env(?:\.|\[")([A-Z][A-Z0-9_]+)/g,
    /fromEnvironment\(\s*"([A-Z0-9_]+)"/g,
    /\bgetenv\("([A-Z0-9_]+)"/g,
    ...(text.includes("environment: Environment") ? [/\bvalue\("([A-Z0-9_]+)"\)/g] : []),
  ];
  const direct = forms.flatMap((form) => [...text.matchAll(form)].map(([, name]) => name!));
  const named = [...text.matchAll(/process\.env\[([A-Z_]+)\]/g)].map(([, name]) => constants.get(name!) ?? name!);
  return [...direct, ...named];
}

function sources(folder: string, ending: RegExp): string[] {
  return readdirSync(join(PACKAGE_ROOT, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => ending.test(name) && !import.meta.url.endsWith(name))
    .map((name) => readFileSync(join(PACKAGE_ROOT, folder, name), "utf8"));
}

const shell = sources("deploy", /\.(sbatch|yaml)$/).flatMap((text) =>
  [...text.matchAll(/\$\{?(PIPELORA_[A-Z_]+)/g)].map(([, name]) => name!),
);
const read = new Set([
  ...["src", "scripts", "tests"].flatMap((folder) => sources(folder, /\.(ts|mjs)$/)).flatMap(readBy),
  ...sources("native", /\.(cpp|cu|h|cuh)$/).flatMap(readBy),
  ...shell,
]);

test("every variable that a source reads is on the page", () => {
  assert.deepEqual([...read].filter((name) => !listed.has(name) && !EVERYWHERE.has(name)).sort(), []);
});

test("every variable on the page is read", () => {
  assert.ok(listed.size > 40);
  assert.deepEqual([...listed].filter((name) => !read.has(name) && !LIBRARIES.has(name)).sort(), []);
});

test("each form of reading one is seen", () => {
  assert.deepEqual(readBy('process.env["A_B"]; process.env.C_D; fromEnvironment(\n "E_F"; std::getenv("G_H")'), [
    "A_B",
    "C_D",
    "E_F",
    "G_H",
  ]);
  assert.deepEqual(readBy('const NAME = "I_J";\nprocess.env[NAME]'), ["I_J"]);
  assert.deepEqual(readBy('f(environment: Environment) { value("K_L") }'), ["K_L"]);
});
