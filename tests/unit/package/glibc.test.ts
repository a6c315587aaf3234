import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { demands, demandsOf } from "../../../scripts/package/elf.mjs";
import { compareVersions, glibcStubs, symbolsUpTo } from "../../../scripts/package/glibc-floor.mjs";
import { temporaryFolder } from "../../support/processes/cli.ts";

const linux = process.platform !== "linux" && "ELF files are Linux's";

test("versions are ordered by number, part by part", () => {
  const version = fc.array(fc.nat(40), { minLength: 1, maxLength: 3 });
  fc.assert(
    fc.property(version, version, (a, b) => {
      const [x, y] = [a.join("."), b.join(".")];
      assert.equal(Math.sign(compareVersions(x, y)), -Math.sign(compareVersions(y, x)) + 0);
    }),
  );
  assert.ok(compareVersions("2.2.5", "2.31") < 0 && compareVersions("2.34", "2.31") > 0);
  assert.equal(compareVersions("2.31", "2.31.0"), 0);
});

test("a symbol is taken in its newest version up to the floor", () => {
  const text = [
    "  1: 0000000000089380  3821 FUNC    GLOBAL DEFAULT   16 pthread_create@GLIBC_2.2.5",
    "  2: 0000000000089380  3821 FUNC    GLOBAL DEFAULT   16 pthread_create@@GLIBC_2.34",
    "  3: 00000000000f7800    52 FUNC    WEAK   DEFAULT   16 fstat@@GLIBC_2.33",
    "  4: 00000000001db5d8     1 OBJECT  GLOBAL DEFAULT   36 environ@@GLIBC_2.2.5",
    "  5: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND elsewhere@GLIBC_2.2.5",
    "  6: 0000000000000010     0 FUNC    GLOBAL DEFAULT   16 internal@@GLIBC_PRIVATE",
  ].join("\n");
  const found = symbolsUpTo("2.31", text);
  assert.deepEqual([...found.keys()], ["pthread_create", "environ"]);
  assert.deepEqual(found.get("pthread_create"), { version: "2.2.5", type: "FUNC", size: 3821 });
  assert.equal(symbolsUpTo("2.34", text).get("pthread_create")?.version, "2.34");
});

test("what a library asks of a machine is found, and what is allowed is not", () => {
  const library = (...lines: string[]) => demands(lines.join("\n"), "2.31", ["libgomp.so.1"]);
  const needed = (name: string) => ` 0x01 (NEEDED)             Shared library: [${name}]`;
  const symbol = (name: string, bind = "GLOBAL") => `  7: 0000000000000000     0 FUNC    ${bind} DEFAULT  UND ${name}`;
  assert.deepEqual(library(needed("libc.so.6"), needed("libgomp.so.1"), symbol("dlopen@GLIBC_2.2.5 (3)")), []);
  assert.deepEqual(library(symbol("napi_create_object"), symbol("anything", "WEAK")), []);
  assert.deepEqual(library(needed("libdnnl.so.2")), ["needs libdnnl.so.2"]);
  assert.deepEqual(library(symbol("dlopen@GLIBC_2.34 (3)")), ["needs dlopen of glibc 2.34"]);
  assert.match(library(symbol("_ZSt4cout@GLIBCXX_3.4 (5)"))[0]!, /libstdc\+\+/);
  assert.match(library(symbol("fstat"))[0]!, /needs fstat/);
  const stack = (flags: string) =>
    `  GNU_STACK      0x000000 0x0000000000000000 0x0000000000000000 0x000000 0x000000 ${flags} 0x10`;
  assert.deepEqual(library(stack("RW ")), []);
  assert.match(library(stack("RWE"))[0]!, /stack/);
});

test("what is linked against the stubs asks for nothing newer, and runs here", { skip: linux }, (t) => {
  const folder = temporaryFolder(t);
  const source = join(folder, "asks.c");
  writeFileSync(
    source,
    `#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
static void* body(void* value) { *(double*)value = pow(*(double*)value, 2); return dlopen(0, 1); }
double asks(double value) { pthread_t thread; pthread_create(&thread, 0, body, &value); pthread_join(thread, 0); return value; }
int main(void) { return asks(3) == 9 ? 0 : 1; }
`,
  );
  const build = (out: string, ...flags: string[]) =>
    execFileSync("cc", [
      "-fPIC",
      "-O0",
      "-fno-builtin",
      source,
      "-o",
      join(folder, out),
      ...flags,
      "-lm",
      "-lpthread",
      "-ldl",
    ]);
  const stubs = glibcStubs(join(folder, "stubs"));
  build("plain.so", "-shared");
  build("old.so", "-shared", `-L${stubs}`);
  assert.deepEqual(demandsOf(join(folder, "old.so"), "2.31"), []);
  // The check has something to find, unless this machine's glibc is as old.
  const { glibcVersionRuntime } = (process.report.getReport() as { header: { glibcVersionRuntime: string } }).header;
  if (compareVersions(glibcVersionRuntime, "2.34") >= 0)
    assert.match(demandsOf(join(folder, "plain.so"), "2.31").join(), /pthread_create of glibc 2\.34/);
  writeFileSync(join(folder, "main.c"), "double asks(double); int main(void) { return asks(3) == 9 ? 0 : 1; }\n");
  execFileSync("cc", [
    join(folder, "main.c"),
    join(folder, "old.so"),
    "-o",
    join(folder, "main"),
    `-Wl,-rpath,${folder}`,
  ]);
  execFileSync(join(folder, "main"));
});
