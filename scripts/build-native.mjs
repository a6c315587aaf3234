// Configures and builds the native engine into build/native (pipelora.node beside its tests); --test runs them with ctest.
// Installs nothing: says what is missing.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { fail, root, run } from "./lib.mjs";

const source = join(root, "native");
const build = join(root, "build", "native");

/** What the build needs, and the Debian package that brings it. */
const NEEDS = [
  ["c++", "g++"],
  ["cmake", "cmake"],
  ["ninja", "ninja-build"],
];

function present(program) {
  return spawnSync(program, ["--version"], { stdio: "ignore" }).status === 0;
}

function checkTools() {
  const missing = NEEDS.filter(([program]) => !present(program)).map(([, name]) => name);
  const includes = ["/usr/include", "/usr/local/include"];
  const header = (name) => includes.some((folder) => existsSync(join(folder, name)));
  if (!header("dnnl.hpp") && !header("oneapi/dnnl/dnnl.hpp")) missing.push("libdnnl-dev");
  if (!header("doctest/doctest.h")) missing.push("doctest-dev");
  if (missing.length > 0) fail(`The native build misses ${missing.join(", ")}: apt-get install ${missing.join(" ")}`);
  for (const name of ["node-api-headers", "node-addon-api"])
    if (!existsSync(join(root, "node_modules", name))) fail(`node_modules/${name} is missing: npm ci`);
}

/** Hash of every source: workers of different builds refuse each other. */
function sourceHash() {
  const hash = createHash("sha256");
  const walk = (folder) => {
    for (const entry of readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) {
        if (entry.name !== "tests" && entry.name !== "bench") walk(path);
      } else if (/\.(cpp|h|inl|cu|cuh|txt)$/.test(entry.name)) {
        hash.update(path.slice(source.length)).update("\0").update(readFileSync(path));
      }
    }
  };
  walk(source);
  return hash.digest("hex").slice(0, 16);
}

checkTools();
mkdirSync(build, { recursive: true });
const jobs = String(availableParallelism());
const quiet = { stdio: ["ignore", "ignore", "inherit"] };
const definitions = {
  CMAKE_BUILD_TYPE: "Release",
  NODE_API_INCLUDE: join(root, "node_modules", "node-api-headers", "include"),
  NODE_ADDON_API_INCLUDE: join(root, "node_modules", "node-addon-api"),
  PIPELORA_BUILD: sourceHash(),
};
// An image is built for more GPUs than the machine at hand.
const architectures = process.env.PIPELORA_CUDA_ARCHITECTURES;
if (architectures !== undefined) definitions.PIPELORA_CUDA_ARCHITECTURES = architectures;
run(
  "cmake",
  ["-S", source, "-B", build, "-G", "Ninja", ...Object.entries(definitions).map(([k, v]) => `-D${k}=${v}`)],
  quiet,
);
const testing = process.argv.includes("--test");
// Only what the product needs and the stand-in for NCCL that tests of links load, unless native tests are asked for too.
const targets = testing ? [] : ["--target", "pipelora_build", "nccl_host"];
run("cmake", ["--build", build, "--parallel", jobs, ...targets]);
if (testing) run("ctest", ["--test-dir", build, "--output-on-failure", "--parallel", jobs]);
