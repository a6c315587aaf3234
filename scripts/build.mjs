// Builds the TypeScript (dist/) and the native engine (build/native/).
import { chmodSync } from "node:fs";
import { join } from "node:path";
import { root, run } from "./lib.mjs";

run("npx", ["tsc", "-b"]);
for (const program of ["coordinator", "worker"]) chmodSync(join(root, "dist", "cli", `${program}.js`), 0o755);
run("node", ["scripts/build-web.mjs"]);
run("node", ["scripts/build-native.mjs"]);
