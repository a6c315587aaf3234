import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { test } from "node:test";
import { ERROR_CATALOGUE } from "../../../src/common/errors.ts";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { COMMANDS, flagOf } from "../../../src/config/option.ts";
import { OPTIONS } from "../../../src/config/options.ts";

const pages = new Map(
  [
    ...readdirSync(PACKAGE_ROOT).filter((name) => name.endsWith(".md")),
    ...readdirSync(join(PACKAGE_ROOT, "docs"), { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".md"))
      .map((name) => join("docs", name)),
    join("native", "README.md"),
  ].map((name) => [name, readFileSync(join(PACKAGE_ROOT, name), "utf8")]),
);

/** A heading's anchor, as GitHub makes it. */
const anchorOf = (heading: string) =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");
const anchorsOf = (text: string) => [...text.matchAll(/^#+ (.+)$/gm)].map(([, heading]) => anchorOf(heading!));

test("every link in a document leads somewhere", () => {
  const broken: string[] = [];
  for (const [name, text] of pages) {
    for (const [, target] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target!)) continue;
      const [path, anchor] = target!.split("#");
      const file = path === "" ? join(PACKAGE_ROOT, name) : resolve(PACKAGE_ROOT, dirname(name), path!);
      if (!existsSync(file)) broken.push(`${name}: ${target}`);
      else if (anchor !== undefined && file.endsWith(".md") && !anchorsOf(readFileSync(file, "utf8")).includes(anchor))
        broken.push(`${name}: ${target} (no such heading in ${relative(PACKAGE_ROOT, file)})`);
    }
  }
  assert.deepEqual(broken, []);
});

test("a source that the guides for contributors name is there", () => {
  const missing: string[] = [];
  for (const name of ["CONTRIBUTING.md", join("docs", "architecture.md"), join("docs", "glossary.md")]) {
    for (const [, path] of pages.get(name)!.matchAll(/`((?:src|native|tests|scripts|proto|bench)\/[\w./-]+)`/g))
      if (!existsSync(join(PACKAGE_ROOT, path!)) && !/NAME|\*/.test(path!)) missing.push(`${name}: ${path}`);
  }
  assert.deepEqual(missing, []);
});

test("each error says what to do, with flags and commands that there are", () => {
  const flags = new Set([...Object.keys(OPTIONS).map(flagOf), "--help"]);
  for (const [code, { means, todo }] of Object.entries(ERROR_CATALOGUE)) {
    for (const text of [means, todo]) assert.match(text, /^[A-Zc].*\.$/, code);
    for (const [flag] of todo.matchAll(/--[a-z][a-z0-9-]+/g)) assert.ok(flags.has(flag), `${code}: ${flag}`);
    for (const [, command] of todo.matchAll(/`coordinator ([a-z-]+)/g))
      assert.ok(COMMANDS.includes(command as never), `${code}: ${command}`);
  }
});

test("flags and commands in the README and the guides are ones that there are, in every language", () => {
  const flags = new Set([...Object.keys(OPTIONS).map(flagOf), "--help", "--version"]);
  const unknown: string[] = [];
  let seen = 0;
  for (const [name, text] of pages) {
    if (!/^README|^docs.(guide|zh-CN)/.test(name)) continue;
    const blocks = [...text.matchAll(/^```sh\n(.*?)^```/gms)].map(([, block]) => block!.replaceAll("\\\n", " "));
    for (const line of blocks.flatMap((block) => block.split("\n"))) {
      const [, rest] = /^(?:npx )?(?:coordinator|pipelora|worker) (.*)$/.exec(line.replace(/ #.*/, "")) ?? [];
      if (rest === undefined) continue;
      seen++;
      const [first] = rest.trim().split(/\s+/);
      if (!first!.startsWith("-") && !(COMMANDS as readonly string[]).includes(first!))
        unknown.push(`${name}: ${first}`);
      for (const [flag] of rest.matchAll(/(?<![\w-])--[a-z][a-z0-9-]+/g))
        if (!flags.has(flag)) unknown.push(`${name}: ${flag}`);
    }
  }
  assert.deepEqual(unknown, []);
  assert.ok(seen > 30, `${seen} commands`);
});
