import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { readJson } from "../../support/processes/cli.ts";

interface Package {
  readonly name: string;
  readonly version: string;
  readonly license: string;
  readonly private: boolean;
  readonly bin: Readonly<Record<string, string>>;
  readonly optionalDependencies: Readonly<Record<string, string>>;
}

const main = readJson<Package>(PACKAGE_ROOT, "package.json");
const native = readJson<Package>(PACKAGE_ROOT, "packages", "native-linux-x64", "package.json");

const [packed] = JSON.parse(
  execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
    cwd: PACKAGE_ROOT,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  }),
) as { files: { path: string; size: number }[]; unpackedSize: number }[];
const files = new Set(packed!.files.map(({ path }) => path));

test("the package holds what its programs need", () => {
  for (const path of Object.values(main.bin)) assert.ok(files.has(path), path);
  const needed = [
    ...[
      "LICENSE",
      "README.md",
      "CHANGELOG.md",
      "SECURITY.md",
      "proto/pipelora/v1/control.proto",
      "examples/demo/data.jsonl",
    ],
    // The page.
    ...["dist/web/index.html", "dist/web/main.js"],
    // A build from source, where the prebuilt engine does not fit.
    ...[
      "native/CMakeLists.txt",
      "native/addon/addon.cpp",
      "native/ops/cuda/CMakeLists.txt",
      "native/portable/exports.map",
    ],
    ...["scripts/build-native.mjs", "scripts/native.mjs", "scripts/lib.mjs"],
    ...["deploy/k8s/base/worker.yaml", "deploy/slurm/pipelora.sbatch", "deploy/skypilot/pipelora.yaml"],
  ];
  assert.deepEqual(
    needed.filter((path) => !files.has(path)),
    [],
  );
});

test("what a script of the package imports is packed too", () => {
  for (const path of files) {
    if (!/^(scripts|dist)\/.*\.m?js$/.test(path)) continue;
    const text = readFileSync(join(PACKAGE_ROOT, path), "utf8");
    for (const [, specifier] of text.matchAll(/\b(?:from|import)\s*\(?\s*"(\.[^"]+)"/g)) {
      const target = join(path, "..", specifier!);
      assert.ok(files.has(target), `${path} imports ${target}`);
    }
  }
});

test("the package holds no tests, no types, no sources of the programs, no build output, no weights", () => {
  const unwanted = [...files].filter(
    (path) =>
      /(^|\/)(tests?|bench|src|build|node_modules)\//.test(path) ||
      /\.(ts|[jt]s\.map|tsbuildinfo|safetensors|gguf|node|o)$/.test(path),
  );
  assert.deepEqual(unwanted, []);
  assert.ok(packed!.unpackedSize < 10 << 20, `${packed!.unpackedSize} bytes`);
});

test("programs can be started", () => {
  for (const path of Object.values(main.bin)) {
    assert.match(readFileSync(join(PACKAGE_ROOT, path), "utf8"), /^#!\/usr\/bin\/env node\n/);
  }
});

test("both packages are of one version and licence, and neither can be published by accident", () => {
  assert.deepEqual([native.version, native.license], [main.version, main.license]);
  assert.equal(main.optionalDependencies[native.name], native.version);
  assert.ok(main.private && native.private);
});
