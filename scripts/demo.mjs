// Installs and builds what is missing, then runs `pipelora demo`.
import { prepare, run } from "./lib.mjs";

prepare();
run(process.execPath, ["dist/cli/pipelora.js", "demo", "--output-dir", "output/demo"]);
