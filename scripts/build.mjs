// Builds the TypeScript and the page (dist/) and the native engine (build/native/); --programs: not the engine.
import { chmodSync } from "node:fs";
import { join } from "node:path";
import { root, run } from "./lib.mjs";

const programsAlone = process.argv[2] === "--programs";
run("npx", ["tsc", "-b", ...(programsAlone ? ["src/cli"] : [])]);
for (const program of ["coordinator", "pipelora", "worker"])
  chmodSync(join(root, "dist", "cli", `${program}.js`), 0o755);
run("node", ["scripts/build-web.mjs"]);
if (!programsAlone) run("node", ["scripts/build-native.mjs"]);
