// Makes the npm packages in build/packages: pipelora, and the native engine built for linux-x64. Nothing is published: both are private.
//   --programs: pipelora alone; --native: the native engine alone
// With nvcc on the PATH the engine has its GPU part.
// PIPELORA_LIBGOMP: a libgomp.so.1 that runs on glibc 2.31; none: this machine's. PIPELORA_ONEDNN_SOURCE: see onednn.mjs.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, realpathSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fail, root, run } from "../lib.mjs";
import { buildNative } from "../native.mjs";
import { demandsOf } from "./elf.mjs";
import { GLIBC_FLOOR, glibcStubs } from "./glibc-floor.mjs";
import { staticOneDnn } from "./onednn.mjs";

const packages = join(root, "build", "packages");
const native = join(root, "packages", "native-linux-x64");

function pack(folder) {
  run("npm", ["pack", "--silent", "--pack-destination", packages], { cwd: folder });
}

/** The addon that asks nothing of a machine but an old glibc, and the OpenMP runtime that it shares with oneDNN. */
function prebuiltAddon() {
  const onednn = staticOneDnn();
  const build = join(root, "build", "portable");
  const stubs = glibcStubs(join(build, "glibc"));
  const definitions = {
    PIPELORA_PORTABLE: stubs,
    PIPELORA_TESTS: "OFF",
    DNNL_INCLUDE: join(onednn, "include"),
    DNNL_LIBRARY: join(onednn, "lib", "libdnnl.a"),
  };
  // A100 and H100, and PTX of the first for every other GPU since.
  process.env.PIPELORA_CUDA_ARCHITECTURES ??= "80;90a-real";
  buildNative({ build, targets: ["pipelora_addon"], definitions });
  copyFileSync(join(build, "pipelora.node"), join(native, "pipelora.node"));
  const found = execFileSync("c++", ["-print-file-name=libgomp.so.1"], { encoding: "utf8" }).trim();
  const libgomp = process.env.PIPELORA_LIBGOMP ?? found;
  copyFileSync(realpathSync(libgomp), join(native, "libgomp.so.1"));
  for (const name of ["pipelora.node", "libgomp.so.1"]) {
    const faults = demandsOf(join(native, name), GLIBC_FLOOR, ["libgomp.so.1"]);
    if (faults.length > 0)
      fail(
        `${name} must run on glibc ${GLIBC_FLOOR} without other libraries, and it\n  ${faults.join("\n  ")}\nTake libgomp.so.1 from an older distribution (Debian 11's package libgomp1) and name it in PIPELORA_LIBGOMP.`,
      );
  }
}

const only = process.argv[2];
rmSync(packages, { recursive: true, force: true });
mkdirSync(packages, { recursive: true });
if (only !== "--native") {
  rmSync(join(root, "dist"), { recursive: true, force: true });
  run("node", ["scripts/build.mjs", "--programs"]);
  pack(root);
}
if (only !== "--programs") {
  prebuiltAddon();
  copyFileSync(join(root, "LICENSE"), join(native, "LICENSE"));
  pack(native);
}
