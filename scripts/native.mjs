// Configures and builds the native engine with CMake. Installs nothing: says what is missing.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fail, root, run } from "./lib.mjs";

export const source = join(root, "native");

/** A checkout has the tests; an installed package has what the addon is made of. */
const TESTS = existsSync(join(source, "tests"));

/** What the build needs, and the Debian package that brings it. */
const NEEDS = [
  ["c++", "g++"],
  ["cmake", "cmake"],
  ["ninja", "ninja-build"],
];

function present(program) {
  return spawnSync(program, ["--version"], { stdio: "ignore" }).status === 0;
}

function checkTools(ownOneDnn) {
  const missing = NEEDS.filter(([program]) => !present(program)).map(([, name]) => name);
  const includes = ["/usr/include", "/usr/local/include"];
  const header = (name) => includes.some((folder) => existsSync(join(folder, name)));
  if (!ownOneDnn && !header("dnnl.hpp") && !header("oneapi/dnnl/dnnl.hpp")) missing.push("libdnnl-dev");
  if (TESTS && !header("doctest/doctest.h")) missing.push("doctest-dev");
  if (missing.length > 0) fail(`The native build misses ${missing.join(", ")}: apt-get install ${missing.join(" ")}`);
}

/** The folder of an installed npm package, which may lie beside this one. */
function packageFolder(name) {
  try {
    return dirname(createRequire(join(root, "package.json")).resolve(`${name}/package.json`));
  } catch {
    return fail(`the npm package ${name} is missing: npm ci`);
  }
}

/** Hash of every source: workers of different builds refuse each other. */
export function sourceHash() {
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

/** Builds `targets` (none: all) in the folder `build`. `definitions`: CMake's, beside those that every build has. */
export function buildNative({ build, targets, definitions = {} }) {
  checkTools(definitions.DNNL_LIBRARY !== undefined);
  mkdirSync(build, { recursive: true });
  const all = {
    CMAKE_BUILD_TYPE: "Release",
    NODE_API_INCLUDE: join(packageFolder("node-api-headers"), "include"),
    NODE_ADDON_API_INCLUDE: packageFolder("node-addon-api"),
    PIPELORA_BUILD: sourceHash(),
    ...(TESTS ? {} : { PIPELORA_TESTS: "OFF" }),
    ...definitions,
  };
  // A package or an image is built for more GPUs than the machine at hand.
  const architectures = process.env.PIPELORA_CUDA_ARCHITECTURES;
  if (architectures !== undefined) all.PIPELORA_CUDA_ARCHITECTURES = architectures;
  const flags = Object.entries(all).map(([key, value]) => `-D${key}=${value}`);
  run("cmake", ["-S", source, "-B", build, "-G", "Ninja", ...flags], { stdio: ["ignore", "ignore", "inherit"] });
  const jobs = String(availableParallelism());
  const only = targets.length === 0 ? [] : ["--target", ...targets];
  run("cmake", ["--build", build, "--parallel", jobs, ...only], { stdio: ["ignore", 2, "inherit"] });
}
