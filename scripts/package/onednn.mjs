// oneDNN as a static library of matrix products alone, in the version that Debian 12 has. It takes long, so it is kept in .cache.
import { existsSync, mkdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { root, run } from "../lib.mjs";

const VERSION = "2.6.3";
const ADDRESS = "https://github.com/oneapi-src/oneDNN.git";

/** Its folder, with include/ and lib/libdnnl.a. PIPELORA_ONEDNN_SOURCE: a folder with its sources, else they are cloned. */
export function staticOneDnn() {
  const cache = join(root, ".cache", `onednn-${VERSION}`);
  const installed = join(cache, "installed");
  if (existsSync(join(installed, "lib", "libdnnl.a"))) return installed;
  mkdirSync(cache, { recursive: true });
  const given = process.env.PIPELORA_ONEDNN_SOURCE;
  const source = given ?? join(cache, "source");
  if (given === undefined && !existsSync(join(source, "CMakeLists.txt")))
    run("git", ["clone", "--depth", "1", "--branch", `v${VERSION}`, ADDRESS, source]);
  const definitions = {
    CMAKE_BUILD_TYPE: "Release",
    CMAKE_INSTALL_PREFIX: installed,
    CMAKE_INSTALL_LIBDIR: "lib",
    CMAKE_POSITION_INDEPENDENT_CODE: "ON",
    DNNL_LIBRARY_TYPE: "STATIC",
    DNNL_CPU_RUNTIME: "OMP",
    DNNL_GPU_RUNTIME: "NONE",
    DNNL_ENABLE_PRIMITIVE: "MATMUL",
    DNNL_ENABLE_WORKLOAD: "INFERENCE",
    DNNL_ENABLE_JIT_PROFILING: "OFF",
    DNNL_BUILD_TESTS: "OFF",
    DNNL_BUILD_EXAMPLES: "OFF",
  };
  const build = join(cache, "build");
  run("cmake", [
    "-S",
    source,
    "-B",
    build,
    "-G",
    "Ninja",
    ...Object.entries(definitions).map(([key, value]) => `-D${key}=${value}`),
  ]);
  run("cmake", ["--build", build, "--parallel", String(availableParallelism())]);
  run("cmake", ["--install", build]);
  return installed;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) staticOneDnn();
