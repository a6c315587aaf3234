// Builds the native engine into build/native (pipelora.node beside its tests); --all builds all of it, --test runs the tests too, --addon [FOLDER] builds the addon alone.
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { root, run } from "./lib.mjs";
import { buildNative } from "./native.mjs";

const [asked, folder] = process.argv.slice(2);
const build = folder ?? join(root, "build", "native");
// Only what the product needs and the stand-in for NCCL that tests of links load, unless native tests are asked for too.
const TARGETS = { "--all": [], "--test": [], "--addon": ["pipelora_addon"] };
buildNative({ build, targets: TARGETS[asked] ?? ["pipelora_build", "nccl_host"] });
if (asked === "--test")
  run("ctest", ["--test-dir", build, "--output-on-failure", "--parallel", String(availableParallelism())]);
