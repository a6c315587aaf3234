// Builds the TypeScript (dist/) and the native engine (build/native/); --programs: the TypeScript alone.
import { chmodSync } from "node:fs";
import { join } from "node:path";
import { root, run } from "./lib.mjs";

<<<<<<< HEAD
const programsAlone = process.argv[2] === "--programs";
run("npx", ["tsc", "-b", ...(programsAlone ? ["src/cli"] : [])]);
for (const program of ["coordinator", "pipelora", "worker"])
  chmodSync(join(root, "dist", "cli", `${program}.js`), 0o755);
if (!programsAlone) run("node", ["scripts/build-native.mjs"]);
=======
run("npx", ["tsc", "-b"]);
for (const program of ["coordinator", "worker"]) chmodSync(join(root, "dist", "cli", `${program}.js`), 0o755);
run("node", ["scripts/build-web.mjs"]);
run("node", ["scripts/build-native.mjs"]);
>>>>>>> h1
