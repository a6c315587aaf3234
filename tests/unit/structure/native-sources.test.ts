import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join, relative, sep } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";

const NATIVE = join(PACKAGE_ROOT, "native");

/** Paths of all files under native/, relative to it, with `/`. */
const files = readdirSync(NATIVE, { recursive: true, encoding: "utf8" }).map((path) => path.split(sep).join("/"));

/**
 * Everything that the project's own build names, relative to native/. The build of a GPU's programs alone takes whole folders, so it
 * cannot tell that the product's build lacks a file; and an addon that lacks one links all the same, and fails when it is opened.
 */
function named(): Set<string> {
  const names = new Set<string>();
  for (const list of files.filter((path) => basename(path) === "CMakeLists.txt" && !path.includes("standalone"))) {
    const folder = dirname(list);
    const text = readFileSync(join(NATIVE, list), "utf8")
      .replaceAll(/#.*$/gm, "")
      .replaceAll(/\$\{PROJECT_SOURCE_DIR\}\//g, "/");
    for (const word of text.split(/[\s()"]+/)) {
      const path = word.startsWith("/")
        ? word.slice(1)
        : relative(NATIVE, join(NATIVE, folder, word))
            .split(sep)
            .join("/");
      names.add(path).add(`${path}.cpp`).add(`${word}.cpp`); // programs are listed without their ending, from native/
    }
  }
  return names;
}

test("the native build names every source", () => {
  const known = named();
  const sources = files.filter((path) => /\.(cpp|cu)$/.test(path) && !path.endsWith("_abi.cpp"));
  assert.ok(sources.length > 100);
  assert.deepEqual(sources.filter((path) => !known.has(path)).sort(), []);
});
