import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { PACKAGE_VERSION } from "../../../src/common/root.ts";
import { takeLock } from "../../../src/engine/addon/build.ts";
import { BUILT_ADDON } from "../../../src/engine/addon/candidates.ts";
import { chooseAddon } from "../../../src/engine/addon/choice.ts";
import { misfit } from "../../../src/engine/addon/trial.ts";
import { engineChoice, engineOrigin, loadEngine } from "../../../src/engine/index.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

/** Variables of this process for one test. */
function withEnvironment(t: TestContext, values: Readonly<Record<string, string | undefined>>): void {
  for (const [name, value] of Object.entries(values)) {
    const before = process.env[name];
    t.after(() => {
      if (before === undefined) delete process.env[name];
      else process.env[name] = before;
    });
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
}

const RIGHT = `(a, b, k) => { const c = new Float32Array(a.length / k * b.length / k); const n = b.length / k;
  for (let i = 0; i < c.length; i++) for (let j = 0; j < k; j++) c[i] += a[Math.floor(i / n) * k + j] * b[(i % n) * k + j]; return c; }`;

/** A module in an addon's place, with its faults. */
function addon(folder: string, name: string, version: string, product: string, first = ""): string {
  const path = join(folder, `${name}.js`);
  writeFileSync(
    path,
    `${first}\nmodule.exports = { capabilities: () => ({ version: ${JSON.stringify(version)} }), product: ${product} };\n`,
  );
  return path;
}

test("an addon that fits is remembered, one that does not is tried again", (t) => {
  const folder = temporaryFolder(t);
  const cache = join(folder, "cache");
  withEnvironment(t, { XDG_CACHE_HOME: cache });
  const marks = () => readdirSync(join(cache, "pipelora"), { withFileTypes: true }).length;
  const right = addon(folder, "right", PACKAGE_VERSION, RIGHT);
  assert.equal(misfit(right), null);
  assert.equal(marks(), 1);
  assert.equal(misfit(right), null);
  assert.match(misfit(addon(folder, "old", "0.0.9", RIGHT))!, /of version 0\.0\.9, expected/);
  assert.match(
    misfit(addon(folder, "wrong", PACKAGE_VERSION, "(a, b, k) => new Float32Array(15)"))!,
    /a product is 0, expected/,
  );
  assert.match(
    misfit(addon(folder, "symbols", PACKAGE_VERSION, RIGHT, 'throw new Error("undefined symbol: fstat");'))!,
    /undefined symbol: fstat/,
  );
  // An instruction that the processor lacks ends the process.
  assert.match(
    misfit(addon(folder, "illegal", PACKAGE_VERSION, '() => process.kill(process.pid, "SIGILL")'))!,
    /SIGILL/,
  );
  assert.match(misfit(addon(folder, "quiet", PACKAGE_VERSION, "() => process.exit(3)"))!, /code 3/);
  assert.equal(marks(), 1);
  // Another file under the same name is another addon.
  addon(folder, "right", "0.0.9", RIGHT);
  assert.match(misfit(right)!, /0\.0\.9/);
});

test("a file that is no addon does not fit, and says what the loader says", (t) => {
  const folder = temporaryFolder(t);
  withEnvironment(t, { XDG_CACHE_HOME: folder });
  const path = join(folder, "pipelora.node");
  writeFileSync(path, "no ELF file");
  assert.match(misfit(path)!, /invalid ELF header|file too short|not a valid/);
});

test("the engine built here fits, and gives oneDNN's products", (t) => {
  withEnvironment(t, { XDG_CACHE_HOME: temporaryFolder(t) });
  assert.equal(misfit(BUILT_ADDON), null);
  const { product } = loadEngine();
  assert.deepEqual(
    [...product(new Float32Array([1, 2, 3, 4]), new Float32Array([5, 6, 7, 8, 9, 10]), 2)],
    [17, 23, 29, 39, 53, 67],
  );
  for (const [a, b, inner] of [
    [[], [1], 1],
    [[1, 2, 3], [1, 2], 2],
    [[1], [1], 0],
  ] as const)
    assert.throws(() => product(new Float32Array(a), new Float32Array(b), inner), { code: "PL_TENSOR_MISMATCH" });
});

test("the addon that is taken is told: named, or built here before one that was built elsewhere", (t) => {
  withEnvironment(t, { PIPELORA_ADDON: "/nowhere/pipelora.node" });
  assert.deepEqual(chooseAddon(), { path: "/nowhere/pipelora.node", origin: "named", refused: [] });
  withEnvironment(t, { PIPELORA_ADDON: undefined });
  assert.deepEqual(chooseAddon(), { path: BUILT_ADDON, origin: "built", refused: [] });
  const { path } = engineChoice();
  assert.ok(engineOrigin().startsWith(`native engine: ${path}`));
});

test("one process builds: a lock is waited for while its holder lives, and taken over after", (t) => {
  const lock = join(temporaryFolder(t), "native.lock");
  assert.ok(takeLock(lock, 0));
  assert.equal(readFileSync(lock, "utf8"), String(process.pid));
  // Held by a process that lives: this one.
  assert.equal(takeLock(lock, 0), false);
  const { pid } = spawnSync(process.execPath, ["-e", ""]);
  for (const gone of [String(pid), "", "no number"]) {
    writeFileSync(lock, gone);
    utimesSync(lock, 1, 1);
    assert.ok(takeLock(lock, 0), gone);
  }
  // Made, and not written yet.
  writeFileSync(lock, "");
  assert.equal(takeLock(lock, 0), false);
  rmSync(lock);
  assert.ok(takeLock(lock, 0));
});
