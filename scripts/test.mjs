// Everything that must hold: lint, types, unit tests, native tests, integration tests with real processes, the page in a browser.
import { prepare, prepareTests, run } from "./lib.mjs";

prepare();
prepareTests();
const stages = ["lint", "test:unit", "test:native", "test:integration", "test:browser"];
for (const stage of stages) {
  process.stdout.write(`\n== ${stage}\n`);
  run("npm", ["run", "--silent", stage]);
}
