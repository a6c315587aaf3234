// Everything that must hold: lint, types, unit tests, native tests, integration tests with real processes, the page in a browser.
import { reportJobs, runJobs } from "./jobs.mjs";
import { install, installForTests } from "./lib.mjs";
import { countTests, testJobs } from "./test-files.mjs";

/** Tests with processes wait for each other much of their time: three files keep two cores busy. */
const SLOTS = 3;

install();
installForTests();
const node = (...args) => [process.execPath, ...args];
const built = ["addon", "programs", "lint"];
const ended = await runJobs(
  [
    { name: "addon", command: node("scripts/build-native.mjs"), beside: true },
    { name: "programs", command: node("scripts/build.mjs", "--programs") },
    { name: "lint", command: ["npm", "run", "--silent", "lint"] },
    { name: "types", command: ["npm", "run", "--silent", "types"], needs: ["programs"] },
    // What only native tests need is built with what the tests leave of the processors.
    {
      name: "native build",
      command: ["nice", "-n", "10", ...node("scripts/build-native.mjs", "--all")],
      needs: ["addon"],
      beside: true,
    },
    { name: "native tests", command: node("scripts/build-native.mjs", "--test"), needs: ["native build"] },
    ...testJobs(["tests/integration", "tests/browser", "tests/unit"], built),
  ],
  SLOTS,
);
reportJobs(ended, [countTests(ended)]);
