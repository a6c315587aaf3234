import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve, sep } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";

const SRC = join(PACKAGE_ROOT, "src");

/** What each of the coordinator's folders may import of the others, lowest first. */
const COORDINATOR: Allowed = {
  cluster: [],
  planning: ["cluster"],
  assembly: ["cluster", "planning"],
  tools: ["cluster", "planning"],
  generation: ["cluster", "planning", "assembly"],
  serving: ["cluster", "planning", "generation"],
  run: ["cluster", "planning", "assembly", "generation", "serving"],
};

type Allowed = Readonly<Record<string, readonly string[]>>;

interface Arrow {
  readonly from: string;
  readonly to: string;
  readonly file: string;
}

/** Specifiers of static, dynamic, type-only and re-exporting imports. */
function importsOf(text: string): string[] {
  const found = text.matchAll(/\b(?:from|import)\s*\(?\s*["']([^"']+)["']/g);
  return [...found].map(([, specifier]) => specifier!);
}

/** Imports from one folder of `root` to another. */
function arrows(root: string, sources: ReadonlyMap<string, string>): Arrow[] {
  return [...sources].flatMap(([file, text]) =>
    importsOf(text)
      .filter((specifier) => specifier.startsWith("."))
      .map((specifier) => resolve(dirname(file), specifier))
      .filter((target) => !relative(root, target).startsWith(".."))
      .map((target) => ({ from: folderOf(root, file), to: folderOf(root, target), file: relative(root, file) }))
      .filter(({ from, to }) => from !== to),
  );
}

function folderOf(root: string, file: string): string {
  return relative(root, file).split(sep)[0]!;
}

function against(found: readonly Arrow[], allowed: Allowed): string[] {
  return found.filter(({ from, to }) => !allowed[from]?.includes(to)).map(({ file, to }) => `${file} imports ${to}/`);
}

/** A path along the arrows that comes back to where it began; null: none. */
function cycle(allowed: Allowed): string[] | null {
  const walk = (path: readonly string[]): string[] | null => {
    for (const next of allowed[path.at(-1)!] ?? []) {
      if (path.includes(next)) return [...path, next];
      const found = walk([...path, next]);
      if (found !== null) return found;
    }
    return null;
  };
  for (const folder of Object.keys(allowed)) {
    const found = walk([folder]);
    if (found !== null) return found;
  }
  return null;
}

function sourcesUnder(root: string): Map<string, string> {
  const files = readdirSync(root, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".ts"));
  return new Map(files.map((name) => [join(root, name), readFileSync(join(root, name), "utf8")]));
}

/** The references of each folder's tsconfig.json. */
function references(): Allowed {
  const folders = readdirSync(SRC, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  return Object.fromEntries(
    folders.map(({ name }) => {
      const config = JSON.parse(readFileSync(join(SRC, name, "tsconfig.json"), "utf8"));
      const paths = ((config.references ?? []) as { path: string }[]).map(({ path }) => path.replace(/^\.\.\//, ""));
      return [name, paths];
    }),
  );
}

test("the folders of src import each other along their tsconfig's references, which have no circle", () => {
  const allowed = references();
  assert.equal(cycle(allowed), null);
  assert.deepEqual(against(arrows(SRC, sourcesUnder(SRC)), allowed), []);
});

test("coordinator and worker do not know each other", () => {
  const { coordinator, worker } = references();
  assert.ok(!coordinator!.includes("worker") && !worker!.includes("coordinator"));
});

test("the coordinator's folders import each other one way", () => {
  const root = join(SRC, "coordinator");
  assert.equal(cycle(COORDINATOR), null);
  assert.deepEqual(against(arrows(root, sourcesUnder(root)), COORDINATOR), []);
});

test("an arrow against the order is seen in every form of import", () => {
  const allowed = { low: [], high: ["low"] };
  const forms = [
    'import { a } from "../high/a.ts";',
    'import type { A } from "../high/a.ts";',
    "import {\n  a,\n} from '../high/a.ts';",
    'export * from "../high/a.ts";',
    'import "../high/a.ts";',
    'const a = await import("../high/a.ts");',
  ];
  for (const form of forms) {
    const found = arrows("/src", new Map([["/src/low/b.ts", form]]));
    assert.deepEqual(against(found, allowed), [`${join("low", "b.ts")} imports high/`], form);
  }
  const right = new Map([["/src/high/a.ts", 'import { b } from "../low/b.ts"; import { c } from "./c.ts";']]);
  assert.deepEqual(against(arrows("/src", right), allowed), []);
  assert.deepEqual(cycle({ a: ["b"], b: ["c"], c: ["a"] }), ["a", "b", "c", "a"]);
});
