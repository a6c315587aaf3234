// Everything that must hold: lint, types, unit tests, native tests, integration tests with real processes.
import { prepare, prepareTests, run } from "./lib.mjs";

prepare();
prepareTests();
const stages = ["lint", "test:unit", "test:native", "test:integration"];
for (const stage of stages) {
  process.stdout.write(`\n== ${stage}\n`);
  run("npm", ["run", "--silent", stage]);
}
